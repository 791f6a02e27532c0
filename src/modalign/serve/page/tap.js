// Hands what the microphone gives to the page, as it is; runs beside it, in the audio thread.

class Tap extends AudioWorkletProcessor {
  process([input]) {
    if (input.length) this.port.postMessage(input[0].slice());
    return true;
  }
}

registerProcessor("modalign-tap", Tap);
