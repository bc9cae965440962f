import {
  ArgumentError,
  type FloatType,
  flopsPerToken,
  kvBytes,
  type ModelConfig,
  parameterCount,
  parameterReport,
  preset,
  presetSizes,
  readConfig,
} from '@asa/core';
import { openFolder } from '@asa/core/node';
import { Argument, Command, Option } from '@commander-js/extra-typings';
import { UsageError } from '../exit';
import { embeddedModel } from '../paths';
import { type NamedPreset, parsePreset } from '../presets';
import {
  formatBytes,
  formatCount,
  formatNumber,
  grouped,
  print,
  printJson,
  table,
} from '../terminal';
import { integer } from '../values';

export const command = new Command('inspect')
  .description('Shows the size, the cost and the KV cache of a model.')
  .addArgument(
    new Argument('[model]', 'a model folder').default(
      undefined,
      'the model that comes with asa',
    ),
  )
  .option(
    '--preset <name>',
    'a preset such as tiny, 340m-nsa, 1.3b-full',
    parsePreset,
  )
  .option(
    '--context <tokens>',
    "context of the costs; the model's when left out",
    integer({ min: 1 }),
  )
  .option('--kv', 'compare KV caches with presets of the same size')
  .addOption(
    new Option('--dtype <type>', 'type of the KV cache')
      .choices(['f32', 'f16', 'bf16'])
      .default('bf16' as const),
  )
  .option('--json', 'print JSON')
  .addHelpText(
    'after',
    `
Examples:
  asa inspect ./my-model
  asa inspect --preset 340m --kv`,
  )
  .action(async (model, options) => {
    const { name, config } = await subject(model, options.preset);
    const context = options.context ?? config.context;
    const report = {
      model: name,
      parameters: parameterReport(config),
      flopsPerToken: { context, ...flopsPerToken(config, context) },
      ...(options.kv && { kv: kvTable(config, options.dtype) }),
    };
    if (options.json) printJson(report);
    else printReport(report);
  });

async function subject(
  model: string | undefined,
  chosen: NamedPreset | undefined,
): Promise<NamedPreset> {
  if (!chosen) {
    const name = model ?? embeddedModel;
    return { name, ...(await readConfig(await openFolder(name))) };
  }
  if (model === undefined) return chosen;
  throw new UsageError('inspect: give a model folder or --preset, not both');
}

interface KvColumn {
  readonly name: string;
  readonly ring: boolean;
  readonly config: ModelConfig;
}

interface KvRow {
  readonly tokens: number;
  /** Bytes by column, and their percentage of NSA's. */
  readonly caches: Readonly<Record<string, { bytes: number; ofNsa: number }>>;
}

/** 2 Ki, 4 Ki, ... 128 Ki tokens. */
const lengths = Array.from({ length: 7 }, (_, i) => 2048 * 2 ** i);

function kvTable(config: ModelConfig, dtype: FloatType): KvRow[] {
  const size = nearestSize(config);
  const of = (name: string) => preset(`${size}-${name}`);
  const columns: KvColumn[] = [
    { name: 'this, ring', ring: true, config },
    { name: 'this, no ring', ring: false, config },
    { name: `${size}-asa, ring`, ring: true, config: of('asa') },
    { name: `${size}-asa, no ring`, ring: false, config: of('asa') },
    { name: `${size}-nsa`, ring: false, config: of('nsa') },
    { name: `${size}-full`, ring: false, config: of('full') },
  ];
  return lengths.map((tokens) => {
    const nsa = kvBytes(of('nsa'), { tokens, dtype, ring: false }).total;
    const caches = columns.map(({ name, ring, config }) => {
      const bytes = kvBytes(config, { tokens, dtype, ring }).total;
      return [name, { bytes, ofNsa: (100 * bytes) / nsa }] as const;
    });
    return { tokens, caches: Object.fromEntries(caches) };
  });
}

/** The preset size whose parameters are nearest, as a ratio. */
function nearestSize(config: ModelConfig): string {
  const distance = (size: string) =>
    Math.abs(Math.log(parameterCount(preset(size)) / parameterCount(config)));
  const [nearest] = presetSizes.toSorted((a, b) => distance(a) - distance(b));
  if (nearest) return nearest;
  throw new ArgumentError('internal: there is no preset');
}

function printReport(report: {
  model: string;
  parameters: ReturnType<typeof parameterReport>;
  flopsPerToken: { context: number; total: number; [part: string]: number };
  kv?: readonly KvRow[];
}): void {
  const { total, ...parts } = report.parameters;
  const share = (count: number) => `${formatNumber((100 * count) / total)} %`;
  print(`${report.model}\n`);
  print(
    table(
      ['parameters', 'count', 'share'],
      [...Object.entries(parts), ['total', total] as const].map(
        ([part, count]) => [part, grouped(count), share(count)],
      ),
    ),
  );
  const { context, ...flops } = report.flopsPerToken;
  print(
    `\n${table(
      [`FLOPs of a token at ${grouped(context)}`, 'forward'],
      Object.entries(flops).map(([part, count]) => [part, formatCount(count)]),
    )}`,
  );
  if (report.kv) print(`\n${kvText(report.kv)}`);
}

function kvText(rows: readonly KvRow[]): string {
  const names = Object.keys(rows[0]?.caches ?? {});
  return table(
    ['KV cache', ...names],
    rows.map(({ tokens, caches }) => [
      `${tokens / 1024}k tokens`,
      ...Object.values(caches).map(
        ({ bytes, ofNsa }) => `${formatBytes(bytes)} ${Math.round(ofNsa)} %`,
      ),
    ]),
  );
}
