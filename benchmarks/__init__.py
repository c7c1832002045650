"""What the figures in README, docs/BENCHMARKS.md and docs/RELIABILITY.md come from: `./launch.sh bench NAME`, one module for each."""
