// Writes what `train.mjs` and `evaluate.mjs` measured into the model's card, and
// draws it.
//
//   node scripts/default-model/card.mjs WORK_FOLDER [KIND…]
//
// The tables go between the two `figures` comments of the embedded model's
// README.md, the charts into docs/images. The CLI must be built.
import { spawnSync } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parameterCount, readConfig } from '../../packages/core/dist/index.js';
import { openFolder } from '../../packages/core/dist/node.js';

const root = join(dirname(fileURLToPath(import.meta.url)), '../..');
const main = join(root, 'packages/cli/dist/main.js');
const images = join(root, 'docs/images');
const card = join(root, 'packages/cli/models/default/README.md');
const [work, ...chosen] = process.argv.slice(2);
if (!work) {
  console.error('card: needs WORK_FOLDER');
  process.exit(2);
}
const names = { asa: 'ASA', nsa: 'NSA', full: 'full attention' };
const kinds = (chosen.length > 0 ? chosen : readdirSync(work)).filter((kind) =>
  existsSync(join(work, kind, 'perplexity.json')),
);
const read = (kind, file) =>
  JSON.parse(readFileSync(join(work, kind, file), 'utf8'));
const has = (file) =>
  kinds.filter((kind) => existsSync(join(work, kind, file)));

const models = await table(
  ['model', 'parameters', 'tokens', 'minutes', 'bits a byte'],
  kinds.map(async (kind) => {
    const { config } = await readConfig(await openFolder(join(work, kind)));
    const { bitsPerByte, bitsPerByteError } = read(kind, 'perplexity.json');
    const { tokens, minutes } = trained(kind);
    return [
      names[kind] ?? kind,
      parameterCount(config).toLocaleString('en-US'),
      `${(tokens / 1e6).toFixed(1)} M`,
      minutes.toFixed(1),
      `${bitsPerByte.toFixed(3)} ± ${bitsPerByteError.toFixed(3)}`,
    ];
  }),
);
const needles = await table(
  ['S-NIAH', 'tokens', ...has('needle.json').map((kind) => names[kind])],
  rowsOf('needle.json', ({ lengths }) =>
    lengths.map(({ task, length, ...found }) => [[task, length], found]),
  ),
);
const choices = await table(
  ['task', 'measure', ...has('choice.json').map((kind) => names[kind])],
  rowsOf('choice.json', ({ tasks }) =>
    tasks.flatMap(({ task, acc, accNorm }) => [
      [[task, 'acc'], acc],
      ...(accNorm ? [[[task, 'acc_norm'], accNorm]] : []),
    ]),
  ),
);

const [start, end] = ['<!-- figures -->', '<!-- /figures -->'];
const text = readFileSync(card, 'utf8');
const [head, rest] = text.split(start);
const tail = rest?.split(end)[1];
if (tail === undefined) {
  console.error(`card: ${card} must hold ${start} and ${end}`);
  process.exit(1);
}
const tables = [models, needles, choices].filter(Boolean).join('\n\n');
writeFileSync(card, `${head}${start}\n\n${tables}\n\n${end}${tail}`);

mkdirSync(images, { recursive: true });
draw('loss', has('train.jsonl'), 'train.jsonl');
draw('loss-by-position', kinds, 'perplexity.json');
for (const kind of has('needle.json')) {
  draw(`needle-${kind}`, [kind], 'needle.json');
}
for (const kind of has('choice.json')) {
  draw(`choice-${kind}`, [kind], 'choice.json');
}

/** Rows of shares, a column a model, by the keys that `entries` gives. */
function rowsOf(file, entries) {
  const rows = new Map();
  const columns = has(file);
  for (const [column, kind] of columns.entries()) {
    for (const [key, found] of entries(read(kind, file))) {
      const name = JSON.stringify(key);
      const row = rows.get(name) ?? [...key, ...columns.map(() => '')];
      const { accuracy, standardError, trials } = found;
      const error = (standardError ?? Number.NaN).toFixed(3);
      row[key.length + column] =
        `${accuracy.toFixed(3)} ± ${error} (${trials})`;
      rows.set(name, row);
    }
  }
  return [...rows.values()];
}

async function table(header, rows) {
  const lines = [header, header.map(() => '---'), ...(await Promise.all(rows))];
  if (lines.length === 2) return '';
  return lines.map((cells) => `| ${cells.join(' | ')} |`).join('\n');
}

/** Input tokens and minutes of training, over both phases. */
function trained(kind) {
  const ends = readFileSync(join(work, kind, 'train.jsonl'), 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line))
    .filter((event) => event.kind === 'end');
  const last = new Map(ends.map((event) => [event.phase, event]));
  const sum = (events, field) =>
    [...events].reduce((total, event) => total + event[field], 0);
  return {
    tokens: sum(last.values(), 'tokens'),
    minutes: sum(ends, 'seconds') / 60,
  };
}

function draw(name, kinds, file) {
  if (kinds.length === 0) return;
  const { status } = spawnSync(
    process.execPath,
    [
      ...[main, 'plot', ...kinds.map((kind) => join(work, kind, file))],
      ...['--names', kinds.map((kind) => names[kind] ?? kind).join(',')],
      ...['--out', join(images, `${name}.svg`)],
    ],
    { stdio: 'inherit' },
  );
  if (status !== 0) process.exit(status ?? 1);
}
