# docker build -t speechbrain-vq .
# docker run --rm -v "$PWD:/data" speechbrain-vq reconstruct my.wav --out=from_tokens
FROM python:3.12-slim

# Wheels without CUDA: about 1 GB in place of 6.
ENV PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu \
    PIP_NO_CACHE_DIR=1 \
    HF_HOME=/data/.cache/huggingface
RUN python -m pip install "torch<2.15" "torchaudio<2.12" \
    --index-url https://download.pytorch.org/whl/cpu

COPY . /src
RUN python -m pip install "/src[eval,report]" && rm -rf /src

WORKDIR /data
ENTRYPOINT ["speechbrain-vq"]
CMD ["--help"]
