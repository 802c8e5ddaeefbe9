{# What every job of SLURM asks for. #}
{% macro head(job, tasks, log) %}
#SBATCH --job-name={{ job.name }}
#SBATCH --ntasks-per-node={{ tasks }}
#SBATCH --cpus-per-task={{ [1, job.cpus // tasks] | max }}
#SBATCH --mem={{ job.memory_mib() }}M
{% if job.accelerators %}
#SBATCH --gpus-per-node={{ job.accelerator ~ ":" if job.accelerator else "" }}{{ job.accelerators }}
{% endif %}
{% if job.partition %}
#SBATCH --partition={{ job.partition }}
{% endif %}
{% if job.account %}
#SBATCH --account={{ job.account }}
{% endif %}
#SBATCH --time={{ job.hours }}:00:00
#SBATCH --output={{ log }}
#SBATCH --open-mode=append
#SBATCH --requeue
{% endmacro %}
