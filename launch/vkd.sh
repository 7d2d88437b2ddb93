#!/usr/bin/env bash
# The runs behind docs/vkd.md, three seeds each, and their table. Run it again after an interruption: what is complete is
# left alone, what was interrupted resumes.
#   bash launch/vkd.sh GLYPHS [FOLDER]   GLYPHS: the file glyph100.npz, see docs/data.md; FOLDER: default runs/vkd
source "$(dirname "$0")/setup.sh"
if [ $# -lt 1 ] || [ ! -f "$1" ]; then
  echo "usage: bash launch/vkd.sh GLYPHS [FOLDER]; GLYPHS is a file that docs/data.md tells how to draw" >&2
  exit 2
fi
glyphs=$1
folder=${2:-runs/vkd}
