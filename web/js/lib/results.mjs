// Results shown on the nodes: findings, waveforms.
