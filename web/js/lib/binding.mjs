// Binding panel of BYA Sampler.
