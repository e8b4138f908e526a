"""The scheduling core: events in, effects out. No I/O, clock, threads, vllm, torch, grpc or protos."""
