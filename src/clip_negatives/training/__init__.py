"""Functions that all training integrations share: weighting, figures, loss state, re-clustering, data checks, temperature."""
