"""Benchmarks: what a braid costs. Each gives one `report.Report`, which knows its raw figures and its targets."""
