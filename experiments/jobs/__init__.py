"""What `experiments.train` can run: a module a job, named by `config.job`, with `run`."""
