"""What the figures in README and docs/BENCHMARKS.md come from: `./launch.sh bench NAME`, one module for each."""
