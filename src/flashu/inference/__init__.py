"""One request: its runs, their samplers, calibration, and the engine that people hold."""
