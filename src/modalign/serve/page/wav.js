// Samples as a WAV file, which every server reads: no codec lies between microphone and encoder.

const HEADER_BYTES = 44;

/** Return a WAV file of 16 bit mono from samples in -1..1, Float32Array. */
export function encodeWav(samples, sampleRateHz, name = "recording.wav") {
  const data = new DataView(new ArrayBuffer(HEADER_BYTES + 2 * samples.length));
  writeHeader(data, samples.length, sampleRateHz);
  samples.forEach((sample, place) => {
    const clipped = Math.max(-1, Math.min(1, sample));
    data.setInt16(HEADER_BYTES + 2 * place, Math.round(clipped * 32767), true);
  });
  return new File([data], name, { type: "audio/wav" });
}

function writeHeader(data, samples, sampleRateHz) {
  writeText(data, 0, "RIFF");
  data.setUint32(4, HEADER_BYTES - 8 + 2 * samples, true);
  writeText(data, 8, "WAVEfmt ");
  data.setUint32(16, 16, true);
  data.setUint16(20, 1, true); // PCM
  data.setUint16(22, 1, true); // channels
  data.setUint32(24, sampleRateHz, true);
  data.setUint32(28, 2 * sampleRateHz, true); // bytes a second
  data.setUint16(32, 2, true); // bytes a frame
  data.setUint16(34, 16, true); // bits a sample
  writeText(data, 36, "data");
  data.setUint32(40, 2 * samples, true);
}

function writeText(data, place, text) {
  for (let letter = 0; letter < text.length; letter += 1) {
    data.setUint8(place + letter, text.charCodeAt(letter));
  }
}

/** Return blocks of samples joined, Float32Array. */
export function joined(blocks) {
  const whole = new Float32Array(blocks.reduce((length, block) => length + block.length, 0));
  let place = 0;
  for (const block of blocks) {
    whole.set(block, place);
    place += block.length;
  }
  return whole;
}
