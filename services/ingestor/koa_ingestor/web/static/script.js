/** A selection as a shell script: curl, each file checked by its SHA-256, the token from outside. */

/** What can be downloaded of rows. @param {boolean} whole all products, not the FITS files alone; of a set always all */
export function files(rows, whole) {
  return rows.flatMap(({ frame, open }) =>
    (open && frame.version ? frame.products : [])
      .filter((product) => product.sha256 && (whole || frame.level || product.role === "fits"))
      .map((product) => ({ frame, product, name: `${frame.level ? `lev${frame.level}/${frame.koaid}/v${frame.version}/` : ""}${product.name}` })),
  );
}

/** @returns {string} the script */
export function script(chosen, origin = location.origin, now = new Date()) {
  const bytes = chosen.reduce((sum, { product }) => sum + product.size, 0);
  const lines = chosen.map(({ frame, product, name }) => {
    const path = `/v1/frames/${encodeURIComponent(frame.frame_id)}/products/${encodeURIComponent(product.name)}`;
    return ["fetch", product.sha256, name, `${path}?version=${frame.version}`].map(quoted).join(" ");
  });
  return [HEAD(chosen.length, bytes, now), `origin=${quoted(origin)}`, BODY, ...lines, FOOT, ""].join("\n");
}

/** A word of the shell. */
function quoted(text) {
  return /^[\w.-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}

const HEAD = (n, bytes, now) => `#!/bin/bash
# ${n} files, ${(bytes / 1e6).toFixed(1)} MB, of the Keck Observatory Archive; made ${now.toISOString()}.
# Run it where the files shall be; run it again to go on: what is there and right is not fetched.
# For proprietary files: export KOA_TOKEN=...  (the token is not in this file)
set -u
command -v curl > /dev/null || { echo "this needs curl" >&2; exit 1; }`;

const BODY = `failed=0
sum() { if command -v sha256sum > /dev/null; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -d ' ' -f 1; }
# The token goes by a pipe: on the command line others on this machine could read it.
auth() { if [ -n "\${KOA_TOKEN:-}" ]; then printf 'header = "Authorization: Bearer %s"\\n' "$KOA_TOKEN"; fi; }
fetch() {  # SHA-256, name, path
    if [ -f "$2" ] && [ "$(sum "$2")" = "$1" ]; then echo "there     $2"; return; fi
    mkdir -p "$(dirname "$2")"
    if ! auth | curl --config - --fail --silent --show-error --location --retry 3 \\
        --output "$2.part" "$origin$3"; then
        echo "FAILED    $2" >&2; failed=$((failed + 1)); return
    fi
    if [ "$(sum "$2.part")" != "$1" ]; then
        echo "NOT RIGHT $2: other bytes than were archived" >&2; failed=$((failed + 1)); return
    fi
    mv "$2.part" "$2" && echo "fetched   $2"
}
`;

const FOOT = `
if [ "$failed" -gt 0 ]; then echo "$failed files are missing; run this again" >&2; exit 1; fi
echo "All files are here, and right."`;
