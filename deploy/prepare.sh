#!/usr/bin/env bash
# Make what docker-compose.yml needs and no repository may hold: keys, passwords and a certificate.
# What is there already is left alone, so that it can be run again; a certificate of your own goes there before.
#
#   deploy/prepare.sh [FOLDER [HOST]]     default: deploy/secrets, localhost
set -euo pipefail
umask 077
here="$(cd "$(dirname "$0")" && pwd)"
folder="${1:-$here/secrets}"
host="${2:-localhost}"

# Half a certificate is a mistake of whoever put it there: a new pair would replace what cannot be made again.
for pair in "crt key" "key crt"; do
  read -r present missing <<<"$pair"
  if [ -e "$folder/tls.$present" ] && [ ! -e "$folder/tls.$missing" ]; then
    echo "$folder has tls.$present and no tls.$missing: put it there, or take tls.$present away; nothing was changed" >&2
    exit 1
  fi
done

mkdir -p "$folder"
chmod 700 "$folder" # what is mounted must be readable for the users of the containers: nobody else gets this far

random() { openssl rand -hex 32; }
digest() { printf %s "$1" | openssl dgst -sha256 -r | cut -d ' ' -f 1; }

if [ ! -e "$folder/api.env" ]; then # the keys and those who know them, made together or not at all
  redis_password="$(random)" admin_key="$(random)" webui_key="$(random)" metrics_key="$(random)"
  sed "s/\${REDIS_PASSWORD_SHA256}/$(digest "$redis_password")/" "$here/redis/users.acl.template" >"$folder/redis.acl"
  printf '%s\n' "$admin_key" >"$folder/admin_key"
  printf %s "$metrics_key" >"$folder/metrics_key"
  chmod 644 "$folder/redis.acl" "$folder/metrics_key"
  printf '%s\n' "OPENAI_API_KEY=$webui_key" "WEBUI_SECRET_KEY=$(random)" >"$folder/webui.env"
  printf '%s\n' "GF_SECURITY_ADMIN_PASSWORD=$(random)" >"$folder/grafana.env"
  keys="{\"id\":\"admin\",\"sha256\":\"$(digest "$admin_key")\",\"scopes\":[\"infer\",\"admin\"]}"
  keys+=",{\"id\":\"webui\",\"sha256\":\"$(digest "$webui_key")\"}"
  keys+=",{\"id\":\"metrics\",\"sha256\":\"$(digest "$metrics_key")\",\"scopes\":[]}"
  printf '%s\n' "INFERAPI_SESSION_STORE_URL=redis://inferapi:$redis_password@redis:6379" "INFERAPI_API_KEYS='[$keys]'" \
    >"$folder/api.env.new"
  mv "$folder/api.env.new" "$folder/api.env"
fi

if [ ! -e "$folder/tls.key" ]; then
  host="${host#[}" host="${host%]}" # an IPv6 address as it stands in URLs
  case "$host" in
    *:*) name="IP:$host" ;;
    *[!0-9.]*) name="DNS:$host" ;;
    *) name="IP:$host" ;;
  esac
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 365 -subj "/CN=$host" \
    -addext "subjectAltName=$name" -keyout "$folder/tls.key" -out "$folder/tls.crt" 2>/dev/null
  chmod 644 "$folder/tls.key" "$folder/tls.crt"
fi
echo "in $folder: admin_key is the key for you; tls.crt is signed by itself, so tell your clients of it or replace it"
