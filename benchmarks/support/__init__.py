"""What several benchmarks share: load, contenders, models, arithmetic and reports."""
