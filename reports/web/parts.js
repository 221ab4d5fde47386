// Parts of the samples: in the page, or in scripts beside it, which a page from a folder may read where it may fetch nothing.
// Each is compressed JSON as base64: nothing in it is ever read as markup or as code.
const KEPT_PARTS = 24, partsRead = new Map(), partsAwaited = new Map();
window.groundprunePart = (name, text) => { const awaited = partsAwaited.get(name); if (awaited) awaited(text); };

function partText(name) {
  const here = document.getElementById(`part-${name}`);
  if (here) return Promise.resolve(here.textContent);
  return new Promise((done, fail) => {
    const script = make("script", { src: `${DATA.samples.beside}${name}.js`, on: { error: () => fail(new Error(`${DATA.samples.beside}${name}.js is not beside this page; copy the folder along with it.`)) } });
    partsAwaited.set(name, done);
    document.head.append(script);
    script.addEventListener("load", () => script.remove());
  });
}

async function inflated(text) {
  if (!window.DecompressionStream) throw new Error("This browser cannot read the samples; Chrome 80, Firefox 113 and Safari 16.4 can.");
  const bytes = Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).json();
}

// the parts that were asked for last stay
function partOf(name) {
  const before = partsRead.get(name), part = before || partText(name).then(inflated);
  partsRead.delete(name);
  partsRead.set(name, part);
  if (!before) part.catch(() => partsRead.delete(name));
  while (partsRead.size > KEPT_PARTS) partsRead.delete(partsRead.keys().next().value);
  return part;
}
