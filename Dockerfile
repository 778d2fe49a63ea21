# The image for `larmor rayjob`: the same Ray and Python as ray-cluster.yaml, all else from constraints.txt.
FROM rayproject/ray:2.60.0-py311-gpu
COPY --chown=ray . larmor
RUN pip install --no-cache-dir -c larmor/constraints.txt ./larmor && rm -r larmor
