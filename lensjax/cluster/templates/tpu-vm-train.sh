#!/usr/bin/env bash
# Start it with: bash tpu-vm-train.sh
# The same command runs on each host of the TPU VM; JAX finds the others.
# shellcheck disable=SC2016  # it is the host's shell that expands them
set -euo pipefail
{# A host whose run ends with 75, as another one's died, starts it again; so do the others. #}
{% set again = "for try in $(seq 0 " ~ job.restarts ~ "); do " ~ line ~ "; status=$?; [ $status -eq 75 ] || break; done; exit $status" %}
gcloud compute tpus tpu-vm ssh {{ job.name }} --zone={{ job.zone }} --worker=all \
  --command={{ (setup ~ "{ " ~ again ~ "; }") | quote }}
