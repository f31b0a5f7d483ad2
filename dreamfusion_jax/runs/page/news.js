// A run that was killed cannot say so: a page that says "Running" tells when it got no news for long.
"use strict";

{
  const state = document.querySelector(".state.running");
  const tell = () => {
    const { written, patience, step, steps } = state.dataset;
    const silent = Date.now() / 1000 - Number(written);
    if (silent <= Number(patience)) return;
    const [where, end] = [step, steps].map((count) => Number(count).toLocaleString("en"));
    const minutes = Math.floor(silent / 60).toLocaleString("en");
    state.className = "state stopped";
    state.textContent = `Stopped, it seems, after step ${where} of ${end}: no news for ${minutes} min. `
      + "The same command continues.";
  };
  if (state) {
    tell();
    setInterval(tell, 5000);
  }
}
