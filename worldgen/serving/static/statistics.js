// Frames per second and latencies over the last frames.

const KEPT = 300;
const RATE_MILLISECONDS = 2000;

export function percentile(values, share) {
  if (!values.length) return NaN;
  const sorted = Float64Array.from(values).sort();
  return sorted[Math.min(sorted.length - 1, Math.ceil(share * sorted.length) - 1)];
}

export class Statistics {
  constructor() {
    this.reset();
  }

  reset() {
    this.frames = 0;
    this.painted = [];
    this.latencies = [];
    this.roundTrips = [];
    this.modelTimes = [];
  }

  /** Count a frame: times in milliseconds of the page's clock. */
  add({ asked, sent, painted, modelMilliseconds }) {
    this.frames += 1;
    this.painted.push(painted);
    this.latencies.push(painted - asked);
    this.roundTrips.push(painted - sent);
    this.modelTimes.push(modelMilliseconds);
    for (const kept of [this.painted, this.latencies, this.roundTrips, this.modelTimes]) {
      if (kept.length > KEPT) kept.shift();
    }
  }

  /** Frames per second over the last two seconds; a pause does not count. */
  rate() {
    const last = this.painted.at(-1);
    const recent = this.painted.filter((time) => time > last - RATE_MILLISECONDS);
    return recent.length < 2 ? NaN : (1000 * (recent.length - 1)) / (last - recent[0]);
  }

  summary() {
    return {
      frames: this.frames,
      frames_per_second: this.rate(),
      latency_ms_p50: percentile(this.latencies, 0.5),
      latency_ms_p95: percentile(this.latencies, 0.95),
      round_trip_ms_p50: percentile(this.roundTrips, 0.5),
      round_trip_ms_p95: percentile(this.roundTrips, 0.95),
      model_ms_p50: percentile(this.modelTimes, 0.5),
      model_ms_p95: percentile(this.modelTimes, 0.95),
    };
  }
}
