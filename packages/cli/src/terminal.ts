import pico from 'picocolors';

/** Colours for a stream: none where no one looks, or `NO_COLOR` is set. */
export function colors(
  stream: NodeJS.WriteStream,
): ReturnType<typeof pico.createColors> {
  const { NO_COLOR, TERM } = process.env;
  return pico.createColors(
    stream.isTTY === true && !NO_COLOR && TERM !== 'dumb',
  );
}

/** Says on stderr what a user may want to know. */
export function note(text: string): void {
  process.stderr.write(`${colors(process.stderr).dim(`asa: ${text}`)}\n`);
}

/** A line of output; on stdout only what was asked for. */
export function print(text: string): void {
  process.stdout.write(`${text}\n`);
}

export function printJson(value: unknown): void {
  print(JSON.stringify(value, null, 2));
}

/** Rows as columns; the first is aligned to the left, numbers to the right. */
export function table(
  header: readonly string[],
  rows: readonly (readonly string[])[],
): string {
  const widths = header.map((title, column) =>
    Math.max(title.length, ...rows.map((row) => row[column]?.length ?? 0)),
  );
  const line = (cells: readonly string[]) =>
    cells
      .map((cell, column) => {
        const width = widths[column] ?? 0;
        return column === 0 ? cell.padEnd(width) : cell.padStart(width);
      })
      .join('  ')
      .trimEnd();
  const { bold } = colors(process.stdout);
  return [bold(line(header)), ...rows.map(line)].join('\n');
}

const byteUnits = ['B', 'KiB', 'MiB', 'GiB', 'TiB'] as const;

/** `1.5 MiB`. */
export function formatBytes(bytes: number): string {
  let value = bytes;
  let unit = 0;
  for (; value >= 1024 && unit < byteUnits.length - 1; unit++) value /= 1024;
  return `${formatNumber(value)} ${byteUnits[unit]}`;
}

const countUnits = ['', ' K', ' M', ' G', ' T'] as const;

/** `1.3 G`, in steps of a thousand. */
export function formatCount(count: number): string {
  let value = count;
  let unit = 0;
  for (; value >= 1000 && unit < countUnits.length - 1; unit++) value /= 1000;
  return `${formatNumber(value)}${countUnits[unit]}`;
}

/** About three digits. */
export function formatNumber(value: number): string {
  if (Number.isInteger(value)) return String(value);
  return value.toFixed(value >= 100 ? 0 : value >= 10 ? 1 : 2);
}

/** `1:02:03` or `2:03`. */
export function formatDuration(seconds: number): string {
  if (!Number.isFinite(seconds)) return '-';
  const whole = Math.round(seconds);
  const two = (value: number) => String(value).padStart(2, '0');
  const [hours, rest] = [Math.floor(whole / 3600), whole % 3600];
  const minutes = Math.floor(rest / 60);
  return hours > 0
    ? `${hours}:${two(minutes)}:${two(rest % 60)}`
    : `${minutes}:${two(rest % 60)}`;
}

/** `1 file`, `2 files`. */
export const counted = (count: number, what: string): string =>
  `${count} ${what}${count === 1 ? '' : 's'}`;

/** Thousands apart: `1,234,567`. */
export const grouped = (value: number): string => value.toLocaleString('en-US');
