// What a pointer, a wheel and keys do on the timeline's canvas, as calls of those who know what it means.

const DRAG_PIXELS = 4;
const WHEEL_PIXELS = 200; // for a zoom by e

/**
 * hover(event), pick(event): where the pointer is, and where it was pressed and let go; leave(); move(pixels): to the right;
 * zoom(factor, x); keys: what each does, by its name.
 */
export function listen(canvas, { hover, pick, leave, move, zoom, keys }) {
  let drag = null;
  canvas.addEventListener("pointerdown", (event) => {
    drag = { x: event.offsetX, moved: false };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (drag && (drag.moved || Math.abs(event.offsetX - drag.x) > DRAG_PIXELS)) {
      drag.moved = true;
      move(drag.x - event.offsetX);
      drag.x = event.offsetX;
    } else hover(event);
  });
  canvas.addEventListener("pointerup", (event) => {
    if (drag && !drag.moved) pick(event);
    drag = null;
  });
  canvas.addEventListener("pointercancel", () => (drag = null));
  canvas.addEventListener("pointerleave", leave);
  const wheel = (event) => {
    const zooms = event.ctrlKey || event.metaKey;
    if (!zooms && Math.abs(event.deltaX) <= Math.abs(event.deltaY)) return; // the page scrolls
    event.preventDefault();
    if (zooms) zoom(Math.exp(event.deltaY / WHEEL_PIXELS), event.offsetX);
    else move(event.deltaX);
  };
  canvas.addEventListener("wheel", wheel, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    if (!(event.key in keys) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    keys[event.key]();
  });
}
