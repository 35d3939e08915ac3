// Which key presses of a reviewer count. Installed once for a window; it hears them before Streamlit's shortcuts do.
//
// - A key that is held down repeats by itself, and would decide one item after the other before anybody can read them.
// - After E and G a person goes on typing: until their box is there, what they type decides nothing. Whoever presses
//   them while the next item is on its way gets the box of that one.
// - A page is painted button by button. E, G and Escape that come before their button wait for it, and after Escape
//   nothing but E and G counts until all the keys are back.
// - The cursor goes into the box by itself: a person who reviews by keys has no mouse in their hand.
(() => {
  if (window.gradusHearsKeys) return;
  window.gradusHearsKeys = true;
  const MOST_MS = 20000; // a line that is gone does not lock the keys for good
  const BOXES = {e: 'edit', g: 'flag'};
  // First `isLeaving` a box or a re-scored edit, by a click on Cancel; then opening the box that `opens` names, by one
  // on its button.
  let underway = null; // {isLeaving, opens, isClicked, item, since}
  let opener = null; // the key that opened a box, until it is let go
  let lastBox = null;

  const isOn = (...pages) => pages.some(page => location.pathname.replace(/\/$/, '').endsWith(`/${page}`));
  const shown = () => document.querySelector('[data-shown]')?.dataset.shown;
  const part = (name, tag) => document.querySelector(`.st-key-${name}-${CSS.escape(shown() ?? '')} ${tag}`);
  const button = name => part(name, 'button:enabled'); // without a line to the server all are disabled
  const box = () => part('text-edit', 'textarea') ?? part('text-flag', 'textarea');
  const isRescored = () => button('accept-the-edit') && !button('keep');
  // The first and the last are there. Cancel stays in the page, unseen, until the run that takes it away has ended.
  const areKeysThere = () => button('keep') && button('why') && !part('cancel', 'button');
  const begin = state => {
    underway = {isLeaving: false, opens: null, isClicked: false, item: shown(), since: performance.now(), ...state};
  };
  const click = name => {
    if (underway.isClicked || !button(name)) return;
    underway.isClicked = true;
    button(name).click();
  };

  const goOn = () => {
    if (!underway) return;
    const item = shown();
    if (!item || performance.now() - underway.since > MOST_MS) { underway = null; return; }
    if (underway.item !== item) Object.assign(underway, {item, isLeaving: false, isClicked: false});
    if (underway.isLeaving) {
      click('cancel');
      if (!underway.isClicked || !areKeysThere()) return;
      Object.assign(underway, {isLeaving: false, isClicked: false});
    }
    if (!underway.opens || isRescored()) underway = null;
    else click(underway.opens);
  };

  const giveCursor = () => {
    const current = box();
    if (current && current !== lastBox) {
      current.focus();
      current.setSelectionRange(current.value.length, current.value.length);
      if (underway && !underway.isLeaving) underway = null;
    }
    lastBox = current;
  };

  // The letter as Streamlit's shortcuts read it: where a layout has no Latin letter on a key, the one that is usual there.
  const letterOf = press => {
    if (press.ctrlKey || press.metaKey || press.altKey || press.shiftKey) return '';
    return (/^[a-z]$/i.test(press.key) ? press.key : /^Key([A-Z])$/.exec(press.code)?.[1] ?? '').toLowerCase();
  };

  // Do what a press on the decision page asks for, if it is for us; whether Streamlit is not to hear of it.
  const take = press => {
    if (!shown()) return false;
    if (press.key === 'Escape') {
      if (!(underway || box() || isRescored())) return false;
      if (underway?.isLeaving) underway.opens = null;
      else begin({isLeaving: true, isClicked: Boolean(underway && !underway.isClicked)}); // else there is none to cancel
    } else {
      const opens = BOXES[letterOf(press)];
      if (opens && underway?.isLeaving) underway.opens = opens;
      else if (opens && !(underway || box() || isRescored())) {
        begin({opens});
        opener = press.code;
        document.activeElement?.blur(); // a button with the focus is pressed by the space and line end of what is typed
      }
    }
    return underway !== null;
  };

  new MutationObserver(() => { goOn(); giveCursor(); }).observe(
    document.body, {subtree: true, childList: true, attributes: true, attributeFilter: ['class', 'disabled']});

  addEventListener('keyup', () => { opener = null; }, true);

  addEventListener('keydown', press => {
    if (!isOn('review_decide', 'adjudication')) return;
    if (press.isComposing) { press.stopImmediatePropagation(); return; } // Escape there is for the writing system
    if (press.repeat && press.code === opener) press.preventDefault();
    else if (/^(INPUT|TEXTAREA|SELECT)$/.test(press.target.tagName)) {
      if (press.key !== 'Escape' || press.target !== box()) return;
    }
    goOn();
    if (press.repeat || (isOn('review_decide') && take(press))) press.stopImmediatePropagation();
    goOn();
  }, true);

  // Edit and Flag by the mouse: what is typed next is for the box, too. Our own clicks are not trusted ones.
  addEventListener('click', event => {
    if (!event.isTrusted || underway || !isOn('review_decide')) return;
    const pressed = event.target.closest?.('button');
    const opens = pressed && Object.values(BOXES).find(name => button(name) === pressed);
    if (opens) begin({opens, isClicked: true});
  }, true);
})();
