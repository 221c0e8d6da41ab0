// Controls ComfyUI's page in Chromium: node page.js JOB.json; prints {answers, errors} as one line of JSON.
// Job: {modules, browser, url, viewport: [w, h], steps: [{do: "load" | "prompt" | ...}, ...],
// strict: whether any error in the console counts}; one answer per step.
const fs = require('fs');
const path = require('path');
const job = JSON.parse(fs.readFileSync(process.argv[2], 'utf8'));
const { chromium } = require(path.join(job.modules, 'playwright-core'));
// what the page itself logs in every session: missing files of a new user, and models of its own first workflow
const OF_THE_PAGE = ['Failed to load resource', 'ComfyApp graph accessed before initialization', 'Content Security Policy'];
const READY = 600000; // ms, also on a machine that is busy

const actions = {
  // Opens a workflow file; returns its nodes with their boxes.
  async load(page, { workflow }) {
    const data = JSON.parse(fs.readFileSync(workflow, 'utf8'));
    await page.evaluate((graph) => window.app.loadGraphData(graph), data);
    await page.waitForFunction((count) => window.app.graph.nodes.length === count, data.nodes.length, { timeout: READY });
    await page.waitForTimeout(500);
    await page.keyboard.press('Escape');
    return page.evaluate(() => window.app.graph.nodes.map((node) => ({
      id: node.id, type: node.type, title: node.title, known: !node.has_errors,
      box: [node.pos[0], node.pos[1] - 30, node.size[0], node.size[1] + 30],
      wired: (node.inputs || []).filter((input) => input.link != null).map((input) => input.name),
      widgets: Object.fromEntries((node.widgets || []).map((widget) => [widget.name, widget.value])),
    })));
  },
  // API graph that the page would queue.
  async prompt(page) {
    return page.evaluate(async () => (await window.app.graphToPrompt()).output);
  },
  // Sets widgets: {values: {nodeId: {name: value}}}.
  async set(page, { values }) {
    await page.evaluate((wanted) => {
      for (const [id, widgets] of Object.entries(wanted)) {
        const node = window.app.graph.getNodeById(Number(id));
        for (const [name, value] of Object.entries(widgets)) node.widgets.find((w) => w.name === name).value = value;
      }
    }, values);
    return null;
  },
  // Evaluates an expression in the page, which may be a promise; returns its value.
  async evaluate(page, { code, wait }) {
    const answer = await page.evaluate(code);
    await page.waitForTimeout(wait || 0);
    return answer;
  },
  // Waits until an expression is true in the page; returns its value.
  async wait(page, { code, seconds }) {
    // false while nodes are made anew
    const safe = `(() => { try { return (${code}); } catch { return false; } })()`;
    const handle = await page.waitForFunction(safe, null, { timeout: (seconds || READY / 1000) * 1000 });
    return handle.jsonValue();
  },
  // Drops files together onto the canvas, or onto the node with an id: {file, type} or {files: [{file, type}]}.
  async drop(page, { file, type, files, node }) {
    const data = (files || [{ file, type }]).map((one) => (
      { text: fs.readFileSync(one.file).toString('base64'), name: path.basename(one.file), type: one.type }));
    const dataTransfer = await page.evaluateHandle((all) => {
      const made = new DataTransfer();
      for (const { text, name, type: kind } of all) {
        const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
        made.items.add(new File([bytes], name, { type: kind }));
      }
      return made;
    }, data);
    let selector = '#graph-canvas';
    let place = {};
    if (node != null) {
      place = await page.evaluate((id) => {
        const { graph, ds, canvas } = window.app.canvas;
        const { pos, size } = graph.getNodeById(id) ?? graph.getNodeById(Number(id));
        ds.offset = [300 - pos[0], 200 - pos[1]];
        ds.scale = 1;
        window.app.canvas.draw(true, true);
        const box = canvas.getBoundingClientRect();
        return { clientX: box.left + 300 + size[0] / 2, clientY: box.top + 200 - 10 };
      }, node);
      await page.waitForTimeout(500);
      if (await page.locator(`[data-node-id="${node}"]`).count()) selector = `[data-node-id="${node}"]`;
    }
    for (const event of node == null ? ['drop'] : ['dragover', 'drop']) {
      await page.dispatchEvent(selector, event, { dataTransfer, ...place });
    }
    return null;
  },
  // Chooses a file with the upload button of a node, as its widget `name`; waits until widget and server have the file.
  async upload(page, { node, name, file }) {
    const chosen = page.waitForEvent('filechooser', { timeout: READY });
    await page.evaluate((id) => {
      const { widgets } = window.app.graph.getNodeById(id) ?? window.app.graph.getNodeById(Number(id));
      widgets.find((one) => one.type === 'button' && /upload/i.test(`${one.name} ${one.label}`)).callback();
    }, node);
    await (await chosen).setFiles(file);
    // Load Audio shows the name of a file before it has been sent
    await page.waitForFunction(async ([id, key, wanted]) => {
      const { widgets } = window.app.graph.getNodeById(id) ?? window.app.graph.getNodeById(Number(id));
      const value = String(widgets.find((one) => one.name === key).value);
      if (!value.includes(wanted)) return false;
      return (await fetch(`/api/view?type=input&filename=${encodeURIComponent(value)}`)).ok;
    }, [node, name, path.parse(file).name], { timeout: READY });
    return null;
  },
  // Chooses files with an entry of the menu that a right click on a node opens.
  async chooseByMenu(page, { node, entry, files }) {
    const [x, y] = await page.evaluate((id) => {
      const { graph, ds, canvas } = window.app.canvas;
      const { pos } = graph.getNodeById(id) ?? graph.getNodeById(Number(id));
      ds.offset = [300 - pos[0], 200 - pos[1]];
      ds.scale = 1;
      window.app.canvas.draw(true, true);
      const box = canvas.getBoundingClientRect();
      return [box.left + 300 + 80, box.top + 200 - 15];
    }, node);
    await page.waitForTimeout(500);
    await page.mouse.click(x, y, { button: 'right' });
    const chosen = page.waitForEvent('filechooser', { timeout: READY });
    await page.getByText(entry, { exact: true }).first().click();
    await (await chosen).setFiles(files);
    return null;
  },
  // Clicks an element at a share of its width and height.
  async click(page, { selector, x, y }) {
    const box = await page.locator(selector).first().boundingBox();
    await page.mouse.click(box.x + x * box.width, box.y + y * box.height);
    return null;
  },
  // Drags from one point to others; each is an expression with the value [x, y].
  async drag(page, { from, to }) {
    await page.mouse.move(...await page.evaluate(from));
    await page.mouse.down();
    for (const point of to) await page.mouse.move(...await page.evaluate(point), { steps: 4 });
    await page.mouse.up();
    await page.waitForTimeout(300);
    return null;
  },
  async press(page, { key }) {
    await page.keyboard.press(key);
    await page.waitForTimeout(1200); // undo and redo load the graph again
    return null;
  },
  // Classic nodes, or Nodes 2.0.
  async nodes2(page, { on }) {
    await page.evaluate((value) => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', value), on);
    await page.waitForTimeout(800);
    return null;
  },
  // Loads the page again, with the graph as it would be saved.
  async reload(page) {
    const graph = await page.evaluate(() => window.app.graph.serialize());
    await page.reload();
    await ready(page);
    await page.evaluate((data) => window.app.loadGraphData(data), graph);
    await page.waitForTimeout(1500);
    return null;
  },
  // Queues the workflow; returns the event it ended with.
  async run(page, { seconds }) {
    const ended = page.evaluate((limit) => new Promise((resolve) => {
      const { api } = window.app;
      for (const kind of ['execution_success', 'execution_error', 'execution_interrupted']) {
        api.addEventListener(kind, (event) => resolve({ kind, detail: event.detail }));
      }
      setTimeout(() => resolve({ kind: 'timeout' }), limit * 1000);
    }), seconds);
    const accepted = await page.evaluate(() => window.app.queuePrompt(0, 1));
    if (accepted === false) return { kind: 'rejected' };
    const result = await ended;
    await page.waitForTimeout(2500); // images and videos are shown after the event
    return result;
  },
  // Images and videos shown by nodes.
  async shown(page) {
    // images are loaded when their node is drawn
    await page.evaluate(() => window.app.extensionManager.command.execute('Comfy.Canvas.FitView'));
    await page.waitForTimeout(2500);
    return page.evaluate(async () => {
      const found = {};
      for (const node of window.app.graph.nodes) {
        const pictures = (node.imgs || []).map((image) => [image.naturalWidth, image.naturalHeight]);
        if (pictures.length) found[node.id] = { pictures };
      }
      const videos = [...document.querySelectorAll('video')].map((video) => ({
        source: video.currentSrc || video.src, seconds: video.duration, width: video.videoWidth, state: video.readyState,
      }));
      return { nodes: found, videos };
    });
  },
  // Repeats steps until the minutes are over, at least once; returns how often.
  async repeat(page, { minutes, steps }) {
    const end = Date.now() + minutes * 60000;
    let rounds = 0;
    do {
      for (const step of steps) await actions[step.do](page, step);
      rounds += 1;
    } while (Date.now() < end);
    return rounds;
  },
  // Screenshot; `fit` shows the whole graph.
  async shot(page, { file, fit, quality }) {
    if (fit) {
      await page.evaluate(() => window.app.extensionManager.command.execute('Comfy.Canvas.FitView'));
      await page.waitForTimeout(800);
    }
    await page.screenshot({ path: file, ...(file.endsWith('.jpg') ? { type: 'jpeg', quality: quality || 80 } : {}) });
    return null;
  },
  // Opens the help of a node, waits for words and an image; returns its text and the widths of its images.
  async help(page, { type, words, file }) {
    await page.evaluate((kind) => {
      const node = window.app.graph.nodes.find((one) => one.type === kind);
      window.app.canvas.selectNodes([node]);
    }, type);
    const button = page.locator('[data-testid="info-button"], .help-button').first();
    await button.waitFor({ state: 'attached', timeout: 120000 }).catch(() => null);
    if (await button.count()) await button.dispatchEvent('click');
    await page.waitForFunction((wanted) => wanted.every((word) => document.body.innerText.includes(word))
      && [...document.querySelectorAll('img')].some((image) => image.src.includes('/docs/') && image.naturalWidth),
    words, { timeout: READY });
    if (file) await page.screenshot({ path: file });
    return page.evaluate(() => ({
      text: document.body.innerText,
      pictures: [...document.querySelectorAll('img')].filter((image) => image.src.includes('/docs/'))
        .map((image) => image.naturalWidth),
    }));
  },
  // Opens the templates of this pack, waits for images of these widths; returns text and image widths.
  async templates(page, { pack, widths, file }) {
    await page.evaluate(() => window.app.extensionManager.command.execute('Comfy.BrowseTemplates'));
    const entry = page.getByText(pack, { exact: true }).first();
    await entry.waitFor({ state: 'attached', timeout: 120000 }).catch(() => null);
    if (await entry.count()) await entry.click();
    await page.waitForFunction((wanted) => {
      const found = [...document.querySelectorAll('img')].map((image) => image.naturalWidth);
      return wanted.every((width) => found.includes(width) && found.splice(found.indexOf(width), 1));
    }, widths, { timeout: READY });
    if (file) await page.screenshot({ path: file });
    const answer = await page.evaluate(() => ({
      text: document.body.innerText,
      widths: [...document.querySelectorAll('img')].map((image) => image.naturalWidth),
    }));
    await page.keyboard.press('Escape');
    return answer;
  },
};

// Waits until the nodes are registered and the first tab is open; a new user's opens late and would replace the graph.
async function ready(page) {
  await page.waitForFunction(() => window.app?.extensionManager && window.LiteGraph
    && Object.keys(window.LiteGraph.registered_node_types).length > 50, null, { timeout: READY });
  await page.waitForFunction(() => window.app.extensionManager.workflow?.activeWorkflow, null, { timeout: READY });
  await page.waitForTimeout(1500);
}

(async () => {
  const browser = await chromium.launch({
    executablePath: job.browser,
    headless: true,
    timeout: READY,
    args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
      '--disable-component-update', '--disable-sync', '--autoplay-policy=no-user-gesture-required'],
  });
  try {
    const [width, height] = job.viewport || [1600, 900];
    const context = await browser.newContext({ viewport: { width, height } });
    context.setDefaultTimeout(READY);
    context.setDefaultNavigationTimeout(READY);
    const local = (url) => ['127.0.0.1', 'localhost'].includes(url.hostname);
    await context.route((url) => !local(url), (route) => route.abort()); // no network access
    const page = await context.newPage();
    const errors = [];
    page.on('pageerror', (error) => errors.push(error.message));
    page.on('console', (message) => { // what the extension of the pack logs; all errors of the page on request
      const counted = job.strict && message.type() === 'error' && !OF_THE_PAGE.some((one) => message.text().includes(one));
      if (counted || message.text().includes('[BindYourAvatar]')) errors.push(message.text());
    });
    await page.goto(job.url);
    await ready(page);
    const answers = [];
    for (const step of job.steps) answers.push(await actions[step.do](page, step));
    process.stdout.write(`${JSON.stringify({ answers, errors })}\n`);
  } finally {
    await browser.close();
  }
})().catch((error) => {
  process.stderr.write(`${error.stack}\n`);
  process.exit(1);
});
