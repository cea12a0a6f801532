# A server of one model. CPU by default; for CUDA: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu126
FROM python:3.12-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG TORCH=torch==2.13.0
ARG EXTRAS=serve,wan
RUN pip install --no-cache-dir --index-url ${TORCH_INDEX} ${TORCH}
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install --no-cache-dir ".[${EXTRAS}]" && useradd --create-home flashu
USER flashu
ENV HF_HOME=/home/flashu/.cache/huggingface
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --start-period=300s CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=5)"]
ENTRYPOINT ["flashu", "serve", "--host", "0.0.0.0"]
CMD ["--model", "scenes", "--presets", "exact,quality,paper"]
