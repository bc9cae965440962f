import type { Report, Row } from '@asa/core/verify';
import { Command, Option } from '@commander-js/extra-typings';
import { openBackend } from '../backends';
import { exitCode } from '../exit';
import { interruptible } from '../interrupt';
import { backendOption } from '../open-model';
import { progressBar } from '../progress';
import { colors, note, print, printJson, table } from '../terminal';
import { integer } from '../values';

export const command = new Command('verify')
  .description(
    'Proves a backend: every operator and random models against the ' +
      'reference, every law, and results of other implementations.',
  )
  .addOption(backendOption)
  .option('--golden <folder>', 'reference files of other implementations')
  .option(
    '--runs <n>',
    'random cases of each operator and type, pattern of layers and law',
    integer({ min: 1 }),
    100,
  )
  .option(
    '--seed <n>',
    'the same seed gives the same cases',
    integer({ min: 0 }),
    1,
  )
  .option(
    '--only <name>',
    'operators, patterns, laws and files with this in their names',
  )
  .addOption(
    new Option('--suite <name...>', 'only some of them').choices([
      'operators',
      'models',
      'laws',
      'golden',
    ] as const),
  )
  .addOption(
    new Option(
      '--dtype <type...>',
      'types that operators are tried in',
    ).choices(['f64', 'f32', 'f16', 'bf16'] as const),
  )
  .option('--path <path>', 'replays one counterexample')
  .addOption(
    new Option(
      '--require [backends]',
      'what the backend cannot run counts as a mismatch; with a list such as ' +
        'cpu,webgpu only for those',
    ).argParser((list) => list.split(',').map((name) => name.trim())),
  )
  .option('--json', 'print the report as JSON')
  .addHelpText(
    'after',
    '\nExample:\n  asa verify --backend cpu --golden ./golden --runs 50',
  )
  .action(async (options) => {
    const { verify } = await import('@asa/core/verify');
    const { openCpu } = await import('@asa/backend-cpu');
    const { openFolder } = await import('@asa/core/node');
    const { golden, only, suite, dtype, path } = options;
    const backend = await openBackend(options.backend);
    const reference = await openCpu({ poison: true });
    const bar = progressBar('verifying');
    try {
      const folder = golden ? await openFolder(golden) : undefined;
      const report = await interruptible(async (signal) => {
        for await (const event of verify({
          backend,
          reference,
          cases: options.runs,
          seed: options.seed,
          signal,
          ...(folder && { golden: folder }),
          ...(only !== undefined && { only }),
          ...(suite && { suites: suite }),
          ...(dtype && { dtypes: dtype }),
          ...(path !== undefined && { path }),
          require: isRequired(backend.name, options.require),
        })) {
          if (event.type === 'start') bar.update(event.done, event.total);
          else if (event.type === 'report') return event.report;
          else if (!process.stderr.isTTY) note(lineOf(event.row));
        }
        throw new Error('internal: verification ended without a report');
      });
      bar.stop();
      if (options.json) printJson(report);
      else show(report);
      if (!report.passed) process.exitCode = exitCode.mismatch;
    } finally {
      bar.stop();
      await reference.destroy();
      await backend.destroy();
    }
  });

const isRequired = (backend: string, list: boolean | string[] | undefined) =>
  Array.isArray(list) ? list.includes(backend) : list === true;

function show({ rows, counts, backend, device, seed, passed }: Report): void {
  print(
    table(
      ['name', 'dtype', 'cases', 'worst', 'status'],
      rows.map((row) => [
        `${row.suite} ${row.name}`,
        row.dtype,
        String(row.cases),
        worstOf(row),
        row.status,
      ]),
    ),
  );
  for (const row of rows) {
    if (row.status === 'ok' || row.detail === undefined) continue;
    print(`\n${row.suite} ${row.name} ${row.dtype}: ${row.detail}`);
    if (row.path !== undefined) {
      print(
        `replay: asa verify --backend ${backend} --only ${row.name} --suite ${row.suite} --dtype ${row.dtype} --seed ${seed} --path ${row.path}`,
      );
    }
  }
  const { green, red } = colors(process.stdout);
  const verdict = passed ? green('agrees') : red('does not agree');
  print(
    `\n${backend} (${device}) ${verdict}: ${counts.ok} ok, ${counts.mismatch} mismatches, ${counts.missing} missing, ${counts.skipped} skipped`,
  );
  if (counts.missing > 0) note('--require makes what is missing a mismatch');
}

/** A row as it comes: of a run that is ended, it is all there is. */
function lineOf(row: Row): string {
  const { suite, name, dtype, status, detail } = row;
  const line = `${suite} ${name} ${dtype}: ${status}, ${worstOf(row)}`;
  return detail === undefined ? line : `${line}: ${detail}`;
}

/** Percent of what is allowed. */
function worstOf({ worst, status }: Row): string {
  if (status === 'missing' || status === 'skipped') return '-';
  return worst < 0 ? '∞ %' : `${worst.toFixed(1)} %`;
}
