// Exists so that the precompiled header has one target to be built in.
