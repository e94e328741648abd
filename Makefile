# Two commands do everything: `make demo` and `make test`. On Debian and Ubuntu they install what is missing.

.PHONY: demo test bench setup

demo: setup
	cargo run --release --locked -- doctor

test: setup
	cargo test --locked

bench: setup
	cargo bench --locked --bench kernels

# The Vulkan loader, and where there is no GPU driver Mesa's software Vulkan. macOS and Windows bring all they need.
setup:
	@set -eu; [ "$$(uname -s)" = Linux ] || exit 0; need=""; \
	command -v cc >/dev/null || need="$$need gcc libc6-dev"; \
	{ ldconfig -p 2>/dev/null || /sbin/ldconfig -p; } | grep -q 'libvulkan\.so\.1' || need="$$need libvulkan1"; \
	found=""; for d in /usr/share/vulkan/icd.d /usr/local/share/vulkan/icd.d /etc/vulkan/icd.d "$$HOME/.local/share/vulkan/icd.d"; do \
	  for f in "$$d"/*.json; do [ -e "$$f" ] && found=1; done; done; \
	[ -n "$$found$${VK_DRIVER_FILES:-}$${VK_ICD_FILENAMES:-}" ] || need="$$need mesa-vulkan-drivers"; \
	[ -n "$$need" ] || exit 0; \
	if ! command -v apt-get >/dev/null; then \
	  echo "denshi needs the equivalents of these Debian packages:$$need" >&2; exit 1; fi; \
	if [ "$$(id -u)" = 0 ]; then as=""; elif sudo -n true 2>/dev/null; then as="sudo"; else \
	  echo "denshi needs:$$need; run: sudo apt-get update && sudo apt-get install -y$$need" >&2; exit 1; fi; \
	echo "installing$$need"; $$as apt-get update -qq; DEBIAN_FRONTEND=noninteractive $$as apt-get install -y -qq --no-install-recommends $$need
