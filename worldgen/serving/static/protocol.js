// Binary messages: packs steps, unpacks pictures. The layout is described in protocol.py.

export const Kind = Object.freeze({
  DREAM: 1, REALITY: 2, DREAM_PREVIEW: 3, REALITY_PREVIEW: 4, DIFFERENCES: 5, VIDEO: 6,
});
export const Encoding = Object.freeze({ RGB: 0, WEBP: 1 });

const STEP_HEADER = 16;
const PICTURE_HEADER = 32;

/** Return the bytes of a step: `stamp` in milliseconds, one number per action group. */
export function packStep(stamp, values) {
  const buffer = new ArrayBuffer(STEP_HEADER + 4 * values.length);
  const view = new DataView(buffer);
  view.setUint8(0, 0);
  view.setUint8(1, values.length);
  view.setFloat64(8, stamp, true);
  values.forEach((value, index) => view.setFloat32(STEP_HEADER + 4 * index, value, true));
  return buffer;
}

/** Return what a binary message from the server holds. */
export function unpack(buffer) {
  const view = new DataView(buffer);
  const kind = view.getUint8(0);
  if (kind === Kind.DIFFERENCES) {
    return { kind, first: view.getUint32(4, true), values: new Float32Array(buffer, 8) };
  }
  if (kind === Kind.VIDEO) return { kind, content: new Uint8Array(buffer, 4) };
  return {
    kind,
    encoding: view.getUint8(1),
    branch: view.getUint16(2, true),
    frame: view.getUint32(4, true),
    stamp: view.getFloat64(8, true),
    modelMilliseconds: view.getFloat32(16, true),
    difference: view.getFloat32(20, true),
    height: view.getUint16(24, true),
    width: view.getUint16(26, true),
    digest: view.getUint32(28, true),
    pixels: new Uint8Array(buffer, PICTURE_HEADER),
  };
}
