"""Every figure that is reported, and how sure it is: formulas, intervals, calibration, tests."""
