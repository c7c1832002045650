"""What holds for all tests: on a loaded machine an example may take its time, and is no failure for that."""

from hypothesis import HealthCheck, settings

settings.register_profile("tandem", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tandem")
