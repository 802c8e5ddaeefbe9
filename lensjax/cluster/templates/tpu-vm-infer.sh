#!/usr/bin/env bash
# Start it with: bash tpu-vm-infer.sh
# Each host of the TPU VM scores a part into a folder that all of them share, then one merges them.
# shellcheck disable=SC2016  # it is the host's shell that expands them
set -euo pipefail
on() {
  gcloud compute tpus tpu-vm ssh {{ job.name }} --zone={{ job.zone }} --worker="$1" --command="$2"
}
{% set number = "curl -sf -H Metadata-Flavor:Google http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number" %}
on all {{ (setup ~ "number=$(" ~ number ~ ") && " ~ line ~ " --part $((number + 1))/" ~ job.nodes) | quote }}
on 0 {{ (setup ~ line) | quote }}
