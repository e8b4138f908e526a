PY := .venv/bin/python
PROTOS := $(shell find protos -name '*.proto')

.PHONY: protos
protos: ## Generate the protobuf code
	$(PY) -m grpc_tools.protoc --proto_path=. --python_out=. --pyi_out=. --grpc_python_out=. $(PROTOS)
