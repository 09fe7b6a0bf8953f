// A canvas at the world's own resolution; the browser enlarges its pixels to squares.

import { Encoding } from "./protocol.js";

export class Screen {
  /**
   * @param {HTMLCanvasElement} canvas
   * @param {HTMLElement} room is told the shape of the picture
   */
  constructor(canvas, room = canvas.parentElement) {
    Object.assign(this, { canvas, room });
    this.context = canvas.getContext("2d", { alpha: false });
    this.fit = this.fit.bind(this);
    new ResizeObserver(this.fit).observe(canvas.parentElement);
  }

  /** Draw a picture; resolves when it is on the canvas. Raw pixels are drawn before it returns. */
  draw(picture) {
    const { width, height, pixels } = picture;
    if (this.canvas.width !== width || this.canvas.height !== height || !this.image) {
      this.canvas.width = width;
      this.canvas.height = height;
      this.image = this.context.createImageData(width, height);
      this.words = new Uint32Array(this.image.data.buffer);
      this.room.style.setProperty("--aspect", width / height);
      this.fit();
    }
    if (picture.encoding === Encoding.RGB) {
      const words = this.words;
      for (let cell = 0, byte = 0; cell < words.length; cell += 1, byte += 3) {
        words[cell] = 0xff000000 | (pixels[byte + 2] << 16) | (pixels[byte + 1] << 8) | pixels[byte];
      }
      this.context.putImageData(this.image, 0, 0);
      return null;
    }
    return createImageBitmap(new Blob([pixels], { type: "image/webp" })).then((bitmap) => {
      this.context.drawImage(bitmap, 0, 0);
      bitmap.close();
    });
  }

  /** Take a whole number of device pixels for each pixel, where that costs hardly any room. */
  fit() {
    const { canvas } = this;
    const { clientWidth, clientHeight } = canvas.parentElement;
    // The height is a whole number of pixels, which must not cost one of the width.
    const inside = Math.min(clientWidth, (clientHeight + 1) * (canvas.width / canvas.height));
    const room = inside * devicePixelRatio;
    const times = Math.floor(room / canvas.width);
    const size = times * canvas.width < 0.99 * room ? room : times * canvas.width;
    // Enlarged but little, pixels of two widths would stand side by side.
    canvas.style.imageRendering = size % canvas.width && times < 3 ? "auto" : "pixelated";
    canvas.style.width = `${size / devicePixelRatio}px`;
    canvas.style.height = `${(size / devicePixelRatio) * (canvas.height / canvas.width)}px`;
  }
}
