// Measures backends, and writes the tables of docs/backends.md from what was
// measured. From a build:
//   node scripts/backends.mjs operators docs/figures/NAME BACKEND...
//   node scripts/backends.mjs times docs/figures/NAME BACKEND... [--large]
//   node scripts/backends.mjs page
// A folder of figures belongs to one machine, which its machine.txt names.
// `operators` writes which of them a backend computes as the reference does,
// and in which types; `times` how long it takes, `--large` for shapes that fill
// a GPU.
import { execFile } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';

const root = fileURLToPath(new URL('..', import.meta.url));
const program = join(root, 'packages/cli/dist/main.js');
const figures = join(root, 'docs/figures');
const page = join(root, 'docs/backends.md');

const operators = [
  ...['matmul matmul', 'operators attention'],
  ...['selectedAttention r=4', 'selectedAttentionBackward r=4'],
].join(',');

/** What is measured: texts in the names of cases, and the rows of a table. */
const sizes = {
  small: {
    arguments: [
      ...['--profile', 'small', '--context', '256', '--seconds', '0.2'],
      ...['--repetitions', '7'],
      ...['--suite', 'matmul,operators,model'],
      '--only',
      `${operators},pp,tg16 @`,
    ],
    rows: [
      ['matmul', 'matmul', 'M 256, N 256, K 256'],
      ['attention', 'attention'],
      ['attention, backward', 'attentionBackward'],
      ['selected attention', 'selectedAttention r=4'],
      ['selected attention, backward', 'selectedAttentionBackward r=4'],
      ['prefill, tokens/s', 'pp256'],
      ['decoding, tokens/s', 'tg16 @ d256'],
    ],
  },
  large: {
    arguments: [
      ...['--profile', 'large', '--context', '2k', '--seconds', '0.2'],
      ...['--suite', 'matmul,operators'],
      ...['--only', operators],
    ],
    rows: [
      ['matmul', 'matmul', 'M 4096, N 4096, K 4096'],
      ['attention', 'attention'],
      ['attention, backward', 'attentionBackward'],
      ['selected attention', 'selectedAttention r=4'],
      ['selected attention, backward', 'selectedAttentionBackward r=4'],
    ],
  },
};

/** The JSON that `asa` prints; a mismatch is a result too. */
function asa(...words) {
  return new Promise((resolve, reject) => {
    const options = { maxBuffer: 2 ** 28 };
    execFile(
      process.execPath,
      [program, ...words],
      options,
      (error, stdout, stderr) => {
        if (stdout) resolve(JSON.parse(stdout));
        else reject(error ?? new Error(stderr));
      },
    );
  });
}

/** `ok`, or why not, of each operator in each type. */
async function operatorsOf(backend) {
  const { device, rows } = await asa(
    ...['verify', '--backend', backend, '--suite', 'operators'],
    ...['--dtype', 'f32', 'f16', 'bf16', '--runs', '5', '--json'],
  );
  const found = {};
  for (const { name, dtype, status, detail, cases } of rows) {
    // Only `cast` is right where it is refused for some types.
    const isThere = name === 'cast' && status === 'missing' && cases > 0;
    found[name] ??= {};
    found[name][dtype] =
      status === 'ok' || isThere ? 'ok' : (detail ?? status).split('\n')[0];
  }
  return { backend, device, operators: found };
}

async function timesOf(backend, size) {
  const { device, date, rows } = await asa(
    ...['bench', '--backend', backend, '-o', 'json'],
    ...sizes[size].arguments,
  );
  const times = sizes[size].rows.map(([title, name, shape]) => {
    const row = rows.find(
      (each) =>
        each.suite !== 'ceilings' &&
        each.name === name &&
        (shape === undefined || each.shape === shape),
    );
    const { status = 'not measured', detail, timing, rates } = row ?? {};
    const ms = timing?.ms;
    return { title, shape: row?.shape, status, detail, ms, rates };
  });
  return { backend, device, date, times };
}

function write(folder, kind, found) {
  mkdirSync(folder, { recursive: true });
  const file = join(folder, `${found.backend}.${kind}.json`);
  writeFileSync(file, `${JSON.stringify(found)}\n`);
}

/** The figures of every machine: its name, what it is, and its files. */
function machines() {
  return readdirSync(figures).map((name) => {
    const folder = join(figures, name);
    const files = readdirSync(folder).filter((file) => file.endsWith('.json'));
    const read = (file) => JSON.parse(readFileSync(join(folder, file), 'utf8'));
    const of = (size) =>
      files
        .filter((file) => file.endsWith(`.${size}.json`))
        .map(read)
        .sort((a, b) => order(a.backend) - order(b.backend));
    const words = readFileSync(join(folder, 'machine.txt'), 'utf8').trim();
    const kinds = ['operators', 'small', 'large'];
    return { words, ...Object.fromEntries(kinds.map((k) => [k, of(k)])) };
  });
}

const known = [
  ...['cpu', 'gpujs-cpu', 'gpujs-wasm', 'gpujs-webgpu'],
  ...['tfjs-cpu', 'tfjs-wasm', 'tfjs-webgpu', 'webgpu', 'cuda'],
];
const order = (backend) => known.indexOf(backend);

const table = (head, rows) =>
  [head, head.map(() => '---'), ...rows]
    .map((cells) => `| ${cells.join(' | ')} |`)
    .join('\n');

/** Of each backend, by the machine where it computes the most types. */
function operatorTable(all) {
  const best = new Map();
  for (const { words, operators: files } of all) {
    for (const { backend, operators } of files) {
      const types = [...new Set(Object.values(operators).flatMap(Object.keys))];
      const lines = types.map((type) => typeCell(operators, type));
      const count = lines.filter(isThere).length;
      if (count > (best.get(backend)?.count ?? -1)) {
        best.set(backend, { count, lines, words });
      }
    }
  }
  const backends = [...best.keys()].sort((a, b) => order(a) - order(b));
  return table(
    ['backend', 'operators that agree with the reference', 'seen on'],
    backends.map((backend) => {
      const { lines, words } = best.get(backend);
      const cells = lines.filter(isThere).map(({ text }) => text);
      return [`\`${backend}\``, cells.join(', '), words];
    }),
  );
}

/** One operator moves integers alone, whatever the type that is asked for. */
const isThere = ({ ok }) => ok > 1;

function typeCell(operators, type) {
  const all = Object.values(operators);
  const ok = all.filter((types) => types[type] === 'ok').length;
  return { ok, text: `${type} ${ok} of ${all.length}` };
}

function speedTable(files, size) {
  const cell = ({ ms, rates, status, title } = {}) => {
    if (ms === undefined) return status ?? '';
    return digits(title.includes('tokens/s') ? rates.tokensPerSecond : ms);
  };
  const rows = sizes[size].rows.flatMap(([title]) => {
    const row = (file) => file.times.find((time) => time.title === title);
    const shape = files.map(row).find((time) => time?.shape)?.shape ?? '';
    const unit = title.includes('tokens/s') ? '' : ', ms';
    const cells = files.map((file) => cell(row(file)));
    const isMeasured = cells.some((text) => text !== '');
    return isMeasured ? [[`${title}${unit}`, shape, ...cells]] : [];
  });
  const heads = files.map(({ backend }) => `\`${backend}\``);
  return table(['f32', 'shape', ...heads], rows);
}

function digits(value) {
  return Number(value.toPrecision(3)).toLocaleString('en-US', {
    maximumFractionDigits: 4,
  });
}

/** docs/backends.md with its tables as the figures have them. */
export function pageOf(text, all = machines()) {
  const speeds = all.flatMap(({ words, small, large }) => {
    const tables = [
      ...(small.length > 0 ? [speedTable(small, 'small')] : []),
      ...(large.length > 0 ? [speedTable(large, 'large')] : []),
    ];
    return tables.length > 0 ? [`### ${words}`, ...tables] : [];
  });
  const parts = { operators: operatorTable(all), speed: speeds.join('\n\n') };
  return Object.entries(parts).reduce(
    (page, [name, content]) =>
      page.replace(
        new RegExp(`(<!-- ${name} -->\n)[^]*?(\n<!-- end -->)`),
        (_, start, end) => `${start}\n${content}\n${end}`,
      ),
    text,
  );
}

async function main() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { large: { type: 'boolean', default: false } },
  });
  const [command, folder, ...backends] = positionals;
  if (command === 'page' && existsSync(figures)) {
    writeFileSync(page, pageOf(readFileSync(page, 'utf8')));
    return;
  }
  if (!['operators', 'times'].includes(command) || backends.length === 0) {
    console.error('usage: see the head of scripts/backends.mjs');
    process.exitCode = 2;
    return;
  }
  const size = values.large ? 'large' : 'small';
  for (const backend of backends) {
    if (command === 'times') write(folder, size, await timesOf(backend, size));
    else write(folder, command, await operatorsOf(backend));
  }
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) await main();
