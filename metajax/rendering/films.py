"""Frames as an animation: a GIF, or an HTML page that holds them all and plays them."""

import base64
import io
import json

from PIL import Image


def gif(frames: list[Image.Image], milliseconds: int) -> bytes:
    """Return a GIF that plays for ever."""
    palette = frames[0].quantize(64)
    quantized = [f.quantize(palette=palette, dither=Image.Dither.NONE) for f in frames]
    buffer = io.BytesIO()
    quantized[0].save(
        buffer,
        format="GIF",
        save_all=True,
        append_images=quantized[1:],
        duration=milliseconds,
        loop=0,
    )
    return buffer.getvalue()


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>metajax</title><style>
body {{ font: 14px sans-serif; margin: 2em auto; width: max-content; max-width: 95%; }}
img {{ display: block; max-width: 100%; }}
input {{ width: 60%; vertical-align: middle; }}
</style></head><body>
<img id="picture" alt="the agent before and after adaptation" src="{first}">
<p><button id="button">pause</button> <input id="slider" type="range" min="0" max="{last}"
value="0" aria-label="time"> <span id="time">0.0 s</span></p>
<script>
const frames = {frames}, milliseconds = {milliseconds};
const part = (id) => document.getElementById(id);
let now = 0, playing = true;
function show() {{
  part("picture").src = "data:image/png;base64," + frames[now];
  part("slider").value = now;
  part("time").textContent = (now * milliseconds / 1000).toFixed(1) + " s";
}}
setInterval(() => {{ if (playing) {{ now = (now + 1) % frames.length; show(); }} }}, milliseconds);
part("button").onclick = () => {{
  playing = !playing;
  part("button").textContent = playing ? "pause" : "play";
}};
part("slider").oninput = (event) => {{
  playing = false;
  part("button").textContent = "play";
  now = Number(event.target.value);
  show();
}};
</script></body></html>
"""


def page(frames: list[Image.Image], milliseconds: int) -> bytes:
    """Return an HTML page that holds all frames and plays them."""
    encoded = []
    for frame in frames:
        buffer = io.BytesIO()
        frame.quantize(64).save(buffer, format="PNG", optimize=True)
        encoded.append(base64.b64encode(buffer.getvalue()).decode())
    page = _PAGE.format(
        first=f"data:image/png;base64,{encoded[0]}",
        last=len(encoded) - 1,
        frames=json.dumps(encoded),
        milliseconds=milliseconds,
    )
    return page.encode()
