#!/usr/bin/env bash
# Start it with: bash slurm-infer.sh
# Once more it goes on: parts that are done are not scored again. The merge waits until all parts
# have succeeded, and is cancelled where one has failed.
set -euo pipefail
cd "$(dirname "$0")"
array=$(sbatch --parsable --array=1-{{ job.nodes }} slurm-infer.sbatch)
array=${array%%;*}
merge=$(sbatch --parsable --output=%x-%j.log --dependency="afterok:$array" \
  --kill-on-invalid-dep=yes slurm-infer.sbatch)
echo "array job $array scores {{ job.nodes }} parts, job ${merge%%;*} merges them; see squeue --me"
