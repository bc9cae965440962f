import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import type { Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { openCpu } from '@asa/backend-cpu';
import { Engine, type GenerateEvent, saveModel } from '@asa/core';
import { openFolder } from '@asa/core/node';
import chromium from '@sparticuz/chromium';
import { type Browser, chromium as driver, type Page } from 'playwright-core';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { serve } from '../../examples/browser/serve.mjs';
import { gla, mla, tinyConfig, tinyModel } from '../unit/engine/tiny-models';

const root = fileURLToPath(new URL('../..', import.meta.url));
const shape = { blocks: [4, 2, 8], sharing: 4 } as const;
const config = tinyConfig('GL', { G: gla(shape), L: mla(9) });
const prompt = [3, 1, 4, 1, 5, 9, 2, 6];
const greedy = { prompt, maxTokens: 12, temperature: 0 };

let server: Server;
let browser: Browser;
let page: Page;
let folder: string;

beforeAll(async () => {
  // Inside of what the server serves.
  const cache = join(root, 'node_modules/.cache');
  mkdirSync(cache, { recursive: true });
  folder = mkdtempSync(join(cache, 'browser-model-'));
  server = await serve(root);
  browser = await driver.launch({
    executablePath: await chromium.executablePath(),
    args: ['--no-sandbox', '--enable-unsafe-webgpu'],
  });
  page = await browser.newPage();
  const { port } = server.address() as AddressInfo;
  await page.goto(`http://127.0.0.1:${port}/examples/browser/index.html`);
}, 120_000);

afterAll(async () => {
  await browser.close();
  server.close();
  rmSync(folder, { recursive: true });
});

const urlOf = (path: string) => `/${relative(root, path)}/`;

/** Text, because a function would come here rewritten for Node.js. */
const inPage = <T>(body: string) =>
  page.evaluate<T>(`(async () => {
    const { openModel } = await import('/examples/browser/model.js');
    ${body}
  })()`);

test('a page generates the tokens that the CPU does', async () => {
  const backend = await openCpu();
  const model = await tinyModel(backend, config);
  await saveModel(await openFolder(folder), model);
  const engine = Engine.from(model);
  const want: GenerateEvent[] = [];
  for await (const event of engine.generate(engine.session(), greedy)) {
    want.push(event);
  }
  const tokens = want.flatMap((event) =>
    'token' in event ? [event.token] : [],
  );
  expect(tokens).toHaveLength(greedy.maxTokens);

  const got = await inPage<{ tokens: number[]; description: string }>(`
    const { engine, backend } = await openModel('${urlOf(folder)}');
    const tokens = [];
    const options = ${JSON.stringify(greedy)};
    for await (const event of engine.generate(engine.session(), options)) {
      if ('token' in event) tokens.push(event.token);
    }
    const { description } = backend;
    await backend.destroy();
    return { tokens, description };
  `);
  expect(got.tokens).toEqual(tokens);
  expect(got.description).toMatch(/swiftshader/i);
  await backend.destroy();
}, 300_000);

test('a folder that is not there is an error with its address', async () => {
  const message = await inPage<string>(
    `return openModel('/nothing/').catch((error) => error.message)`,
  );
  expect(message).toBe('/nothing/config.json: 404');
});

test('the server gives nothing outside of its folder', async () => {
  const { port } = server.address() as AddressInfo;
  for (const path of ['/..%2f..%2fetc/passwd', '/packages', '/%00', '/%']) {
    const response = await fetch(`http://127.0.0.1:${port}${path}`);
    expect(response.status, path).toBe(404);
  }
});
