"""Covariance spectra, streaming moments and log-sum-exp, quadrature, random streams."""
