// The dialogue timeline of BYA Scene.
