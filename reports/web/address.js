// What is shown stands behind the # of the address, so that a link of it can be shared and the back button leads back;
// a plain fragment, of a section, leaves it as it is.
const address = (() => {
  let held = new URLSearchParams();
  const followers = [];
  const take = () => {
    if (!location.hash.startsWith("#?")) return false;
    held = new URLSearchParams(location.hash.slice(2));
    return true;
  };
  // null, "" and an empty list take a name away
  const changed = (changes) => {
    const next = new URLSearchParams(held);
    for (const [name, value] of Object.entries(changes)) {
      next.delete(name);
      for (const one of Array.isArray(value) ? value : [value]) if (known(one) && one !== "") next.append(name, one);
    }
    return next;
  };
  addEventListener("popstate", () => { if (take()) followers.forEach((follow) => follow()); });
  take();
  return {
    get: (name) => held.get(name) ?? "",
    list: (name) => held.getAll(name),
    link: (changes) => `#?${changed(changes)}`,
    // `step`: whether the back button undoes it
    set(changes, step = true) {
      const next = changed(changes);
      if (String(next) === String(held)) return;
      held = next;
      history[step ? "pushState" : "replaceState"](null, "", `#?${held}`);
    },
    follow: (act) => followers.push(act),
  };
})();
