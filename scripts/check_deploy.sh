#!/usr/bin/env bash
# Checks the image's recipe, the compose file and what is under deploy/, without an engine or a cluster.
#
#   scripts/check_deploy.sh        without promtool the files of Prometheus itself are not checked, and it says so
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"

echo "Dockerfile: hadolint"
hadolint Dockerfile

echo "requirements-serve.lock: the versions of requirements.lock"
# The marker behind a version may be narrower where there are fewer packages; the version may not differ.
versions() { grep -oE '^[a-z0-9][^ ]*==[^ ]+' "$1" | sort; }
if ! comm -23 <(versions requirements-serve.lock) <(versions requirements.lock) | (! grep .); then
  echo "these differ; run: make lock" >&2
  exit 1
fi

echo "docker-compose.yml: schema"
check-jsonschema --quiet --builtin-schema vendor.compose-spec docker-compose.yml

echo "docker-compose.yml, deploy: yamllint"
yamllint --strict -d '{extends: default, rules: {document-start: disable, line-length: {max: 130}}}' \
  docker-compose.yml deploy

if command -v promtool >/dev/null; then
  echo "deploy/prometheus: promtool"
  promtool check config deploy/prometheus/prometheus.yml >/dev/null
  promtool check rules deploy/prometheus/rules.yml >/dev/null
  promtool test rules deploy/prometheus/rules_test.yml
else
  echo "NOT CHECKED: deploy/prometheus/{prometheus,rules,rules_test}.yml: promtool, of Debian's package prometheus, is not on the PATH" >&2
fi
