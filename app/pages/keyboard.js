// Which key presses of a reviewer count. Installed once for a window; it hears them before Streamlit's shortcuts do.
//
// - A key that is held down repeats by itself, and would decide one item after the other before anybody can read them.
// - After E and G a person goes on typing: until their box is there, or another item is, what they type decides nothing.
// - A page is painted button by button. E, G and Escape that come before their button wait for it, and after Escape
//   nothing but E and G count until all the keys are back.
// - The cursor goes into the box by itself: a person who reviews by keys has no mouse in their hand.
(() => {
  if (window.gradusHearsKeys) return;
  window.gradusHearsKeys = true;
  const MOST_MS = 20000; // a line that is gone does not lock the keys for good
  const BOX_OF = {e: 'edit', g: 'flag'};
  let waiting = null; // {what, item, since, isClicked}: for a box ('edit', 'flag'), for it to go ('cancel'), for 'keys'
  let written = null; // the box that was given the cursor

  const isDecisionPage = () => /\/review_decide\/?$/.test(location.pathname);
  const shown = () => document.querySelector('[data-shown]')?.dataset.shown;
  const button = name => document.querySelector(`.st-key-${name}-${CSS.escape(shown() ?? '')} button`);
  const box = () => document.querySelector('.st-key-writing textarea');
  const areKeysThere = () => button('keep') && button('why'); // the first and the last
  const isRescored = () => button('accept-the-edit') && !button('keep');
  const waitFor = what => { waiting = {what, item: shown(), since: performance.now(), isClicked: false}; };
  const isForBox = () => waiting && Object.values(BOX_OF).includes(waiting.what);
  const isLeaving = () => waiting && !isForBox();

  const goOn = () => {
    if (!waiting) return;
    const isOver = waiting.item !== shown() || performance.now() - waiting.since > MOST_MS;
    if (isOver || (waiting.what === 'keys' && areKeysThere())) { waiting = null; return; }
    if (waiting.isClicked || !button(waiting.what)) return;
    waiting.isClicked = true;
    button(waiting.what).click();
    if (waiting.what === 'cancel') waitFor('keys');
  };

  const giveCursor = () => {
    const now = box();
    if (now && now !== written) {
      now.focus();
      now.setSelectionRange(now.value.length, now.value.length);
      if (isForBox()) waiting = null;
    }
    written = now;
  };

  // Whether the window takes the press for itself.
  const isTaken = press => {
    if (press.key === 'Escape') {
      if (!(box() || isRescored() || waiting)) return false;
      if (isForBox() && !waiting.isClicked) waitFor('keys');
      else if (!isLeaving()) waitFor('cancel');
      return true;
    }
    const isPlain = !press.ctrlKey && !press.metaKey && !press.altKey;
    const what = isPlain && BOX_OF[press.key.toLowerCase()];
    const isOpening = what && shown() && (waiting ? waiting.what === 'keys' : !(box() || isRescored()));
    if (isOpening) waitFor(what);
    return waiting !== null;
  };

  const look = new MutationObserver(() => { goOn(); giveCursor(); });
  look.observe(document.body, {subtree: true, childList: true, attributes: true, attributeFilter: ['class']});

  addEventListener('keydown', press => {
    const isInside = /^(INPUT|TEXTAREA|SELECT)$/.test(press.target.tagName);
    if (isInside && !(press.key === 'Escape' && press.target === box())) return;
    goOn();
    if ((press.repeat && !isInside) || (isDecisionPage() && isTaken(press))) press.stopImmediatePropagation();
    goOn();
  }, true);
})();
