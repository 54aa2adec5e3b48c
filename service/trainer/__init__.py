"""Fine-tuning. Parent side: process, messages. Child side: everything else."""
