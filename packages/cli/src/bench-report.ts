import type { BenchReport } from '@asa/core/bench';
import { formatNumber } from './terminal';

/** A report, and the program that made it. */
type VersionedReport = BenchReport & { readonly version: string };

type ReportRow = BenchReport['rows'][number];

/** Median milliseconds of an earlier run, by case. */
export type Earlier = ReadonlyMap<string, number>;

const keyOf = ({ suite, name, dtype, shape }: ReportRow) =>
  [suite, name, dtype, shape].join('|');

/**
 * The times in the JSON of an earlier run.
 * @throws Error with the rule that it breaks.
 */
export function earlierRows(report: unknown): Earlier {
  const { rows } = (report ?? {}) as { readonly rows?: unknown };
  if (!Array.isArray(rows)) throw new Error('but it has no rows');
  const times = new Map<string, number>();
  for (const row of rows as readonly ReportRow[]) {
    const ms = row?.timing?.ms;
    if (typeof ms === 'number') times.set(keyOf(row), ms);
  }
  return times;
}

interface Column {
  readonly title: string;
  readonly value: (row: ReportRow) => string | number | undefined;
  /** In which tables; in all when left out. */
  readonly only?: 'md' | 'csv';
}

function columnsOf(earlier: Earlier | undefined): readonly Column[] {
  const before = (row: ReportRow) => earlier?.get(keyOf(row));
  const ratio = (row: ReportRow) => {
    const [old, now] = [before(row), row.timing?.ms];
    return old !== undefined && now ? old / now : undefined;
  };
  return [
    { title: 'suite', value: ({ suite }) => suite },
    { title: 'case', value: ({ name }) => name },
    { title: 'type', value: ({ dtype }) => dtype },
    { title: 'shape', value: ({ shape }) => shape },
    { title: 'ms', value: ({ timing }) => timing?.ms },
    { title: 'quartiles', value: quartilesOf, only: 'md' },
    { title: 'fastest', value: ({ timing }) => timing?.fastest },
    { title: 'lower', value: ({ timing }) => timing?.lower, only: 'csv' },
    { title: 'upper', value: ({ timing }) => timing?.upper, only: 'csv' },
    { title: 'runs', value: ({ timing }) => timing?.repetitions },
    { title: 'tokens/s', value: ({ rates }) => rates?.tokensPerSecond },
    { title: 'GFLOP', value: ({ cost }) => cost && cost.flops / 1e9 },
    { title: 'MB', value: ({ cost }) => cost && cost.bytes / 1e6 },
    { title: 'TFLOP/s', value: ({ rates }) => rates?.teraflops },
    { title: '% of peak', value: ({ rates }) => rates?.ofPeak },
    { title: 'GB/s', value: ({ rates }) => rates?.gigabytesPerSecond },
    { title: '% of bandwidth', value: ({ rates }) => rates?.ofBandwidth },
    { title: 'checked on', value: ({ checkedOn }) => checkedOn },
    { title: 'error %', value: ({ worst }) => worst, only: 'csv' },
    { title: 'status', value: ({ status }) => status, only: 'csv' },
    ...(earlier
      ? [
          { title: 'earlier ms', value: before },
          { title: 'times as fast', value: ratio },
        ]
      : []),
  ];
}

function quartilesOf({ timing }: ReportRow): string | undefined {
  return timing && `${digits(timing.lower)} - ${digits(timing.upper)}`;
}

type Format = (report: VersionedReport, earlier?: Earlier) => string;

export const formats: Readonly<Record<'md' | 'csv' | 'json', Format>> = {
  md: asMarkdown,
  csv: asCsv,
  json: (report) => JSON.stringify(report, null, 2),
};

function asMarkdown(report: VersionedReport, earlier?: Earlier): string {
  const { rows, backend, device, date, version, complete } = report;
  const columns = columnsOf(earlier).filter(
    ({ value, only }) =>
      only !== 'csv' && rows.some((row) => value(row) !== undefined),
  );
  const line = (cells: readonly string[]) => `| ${cells.join(' | ')} |`;
  const cell = (value: string | number | undefined) =>
    typeof value === 'number' ? digits(value) : (value ?? '');
  const few = rows.some(({ timing }) => timing && timing.repetitions < 20);
  return [
    `${device} (${backend}), asa ${version}, ${date}`,
    '',
    line(columns.map(({ title }) => title)),
    line(columns.map(() => '---')),
    ...rows.map((row) => line(columns.map(({ value }) => cell(value(row))))),
    '',
    'ms: median of the repetitions. FLOPs of visible pairs only; bytes of ' +
      'operands and results, once.',
    ...(few ? ['Fewer than 20 repetitions where the column says so.'] : []),
    ...(complete
      ? []
      : ['Interrupted: cases that were not reached are missing.']),
    ...rows.flatMap(({ suite, name, dtype, status, detail }) =>
      detail === undefined
        ? []
        : [`${suite} ${name} ${dtype}: ${status}, ${detail}`],
    ),
  ].join('\n');
}

function asCsv({ rows, device }: VersionedReport, earlier?: Earlier): string {
  const columns = [
    { title: 'device', value: () => device },
    ...columnsOf(earlier).filter(({ only }) => only !== 'md'),
    { title: 'detail', value: ({ detail }: ReportRow) => detail },
  ];
  const quoted = (value: string | number = '') =>
    /[",\n]/.test(`${value}`)
      ? `"${`${value}`.replaceAll('"', '""')}"`
      : `${value}`;
  return [
    columns.map(({ title }) => quoted(title)).join(','),
    ...rows.map((row) =>
      columns.map(({ value }) => quoted(value(row))).join(','),
    ),
  ].join('\n');
}

/** One row, as it comes. */
export function lineOf({
  suite,
  name,
  dtype,
  status,
  detail,
  timing,
}: Omit<ReportRow, 'rates'>): string {
  const result = timing ? `${digits(timing.ms)} ms` : `${status}, ${detail}`;
  return `${suite} ${name} ${dtype}: ${result}`;
}

/** Three digits that count. */
function digits(value: number): string {
  if (Number.isInteger(value) || Math.abs(value) >= 100) {
    return formatNumber(Math.round(value));
  }
  return value.toPrecision(3);
}
