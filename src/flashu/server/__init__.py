"""A server of one model: the OpenAI shape over HTTP, step batching across requests, and a page to draw on."""
