# What people and CI run here. `make` alone lists it.

.DEFAULT_GOAL := help
.PHONY: help demo test bench chaos chaos-planted fuzz test-models lint

PIXWARDEN := $(or $(CARGO_TARGET_DIR),target)/debug/pixwarden

# Another build of ONNX Runtime, one for a GPU perhaps, can be given from outside.
export ORT_DYLIB_PATH ?= $(CURDIR)/.tools/onnxruntime/libonnxruntime.so
# There are no examples. Asking for them gives the dependencies the features that the tests want of them (tokio's clock,
# for one), so that no two targets here compile tokio and all that stands on it anew.
TEST_FEATURES := --examples
# Planted bugs and crashes. Integration tests and chaos runs share one build, so every test target has the feature.
FAULTS := --features fault-injection
CHAOS := .tools/venv/bin/python tests/chaos/run --pixwarden $(PIXWARDEN)
MINUTES := 10
SECONDS := 600
PLANTED := ack-before-commit no-mandatory outbox-by-id-cursor error-is-passed attempts-after-work no-event-on-redelivery
# Cargo finds its subcommands on the path.
export PATH := $(PATH):$(CURDIR)/.tools/cargo-nextest/bin:$(CURDIR)/.tools/cargo-deny/bin

help: ## list the targets
	@awk -F ': .*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## screen sample images with the bundled detector; needs no broker, database or object store
	@tests/services/get build runtime
	cargo build --locked --bins $(TEST_FEATURES)
	$(PIXWARDEN) scan --format table models/samples
	@echo "The bundled detector knows 32x32 thumbnails only: this shows the machinery, and the scores mean nothing."
	@echo "Real use needs a real detector: models fetch hf://OWNER/NAME, then scan --detector models/NAME PATH..."

test: ## run every test against private instances of RabbitMQ, PostgreSQL and S3
	@tests/services/get build runtime python services nextest promtool
	cargo build --locked --all-targets $(FAULTS)
	.tools/venv/bin/python tests/packaging/check.py
	.tools/venv/bin/python tests/agreement.py --pixwarden $(PIXWARDEN)
	.tools/venv/bin/python tests/evaluate.py --pixwarden $(PIXWARDEN)
	.tools/venv/bin/python -m unittest discover -s tests/models/light -t tests/models
	.tools/venv/bin/python -m unittest discover -s tests/chaos -p '*_test.py'
	.tools/venv/bin/python -m unittest discover -b -s tests/bench/gpu
	cargo test --locked --doc $(FAULTS)
	for target in messages images packages; do FUZZ_VERBOSITY=0 tests/fuzz/run $$target 15 || exit 1; done
	tests/services/run -- $(CHAOS) --minutes 2 --seed 1
	tests/services/run -- cargo nextest run --locked $(FAULTS)

bench: ## measure everything beside what people would use instead; an hour, on a machine that does nothing else
	@tests/services/get build runtime python services
	cargo build --locked --release
	cargo bench --locked --bench parts --no-run
	test -d .tools/venv-bench || python3 -m venv .tools/venv-bench
	.tools/venv-bench/bin/pip install --quiet -r tests/bench/requirements.txt
	tests/services/run -- .tools/venv-bench/bin/python tests/bench/compare --pixwarden target/release/pixwarden $(BENCH)

fuzz: ## mutate messages, images and model packages for SECONDS=600 each, the decoders instrumented too
	@tests/services/get build
	for target in messages images packages; do FUZZ_EVERYTHING=1 tests/fuzz/run $$target $(SECONDS) || exit 1; done

chaos: ## break everything around running workers for MINUTES=10 by SEED (any), and check that nothing was lost
	@tests/services/get build runtime python services
	cargo build --locked --bins $(TEST_FEATURES) $(FAULTS)
	tests/services/run -- $(CHAOS) --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(if $(WORKERS),--workers $(WORKERS))

chaos-planted: ## put six known mistakes into the workers, one after another, and see that the chaos run finds each
	@tests/services/get build runtime python services
	cargo build --locked --bins $(TEST_FEATURES) $(FAULTS)
	for bug in $(PLANTED); do tests/services/run -- $(CHAOS) --minutes 0.4 --seed 11 --planted $$bug || exit 1; done

test-models: ## test converter and training recipe, which need PyTorch (gigabytes) and ten minutes
	@tests/services/get build runtime
	cargo build --locked --bins $(TEST_FEATURES)
	test -d .tools/venv-models || python3 -m venv .tools/venv-models
	.tools/venv-models/bin/pip install --quiet -r models/requirements-convert.txt -r models/requirements-train.txt
	.tools/venv-models/bin/python -m unittest discover -s tests/models/light -t tests/models
	PIXWARDEN=$(abspath $(PIXWARDEN)) .tools/venv-models/bin/python -m unittest discover -v -s tests/models/full -t tests/models

lint: ## check formatting, clippy's lints, the documentation's links, licences and banned dependencies
	@tests/services/get build lint
	cargo fmt --all --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --lib $(TEST_FEATURES)
	cargo fetch --locked
	cargo deny --offline check bans licenses sources
