const root = document.documentElement;
const remembered = { read: () => { try { return localStorage.getItem("theme"); } catch { return null; } }, write: (value) => { try { localStorage.setItem("theme", value); } catch { /* a page from a folder may have no memory */ } } };
if (remembered.read()) root.dataset.theme = remembered.read();
find("#theme").addEventListener("click", () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  remembered.write(root.dataset.theme);
});
all(".board").forEach(startBoard);
startCharts();
startMasks();
startSamples();
