// Says of vitest's JSON reports which tests failed and why, and last of all
// `N passed, N failed, N skipped`.
import { readFileSync } from 'node:fs';
import { relative } from 'node:path';

let [passed, failed, skipped] = [0, 0, 0];

/** The first lines of what a test said: the whole is further up in the log. */
function sayFailed(file, name, messages) {
  failed++;
  console.log(`failed: ${relative(process.cwd(), file)}: ${name}`);
  const lines = messages.join('\n').split('\n');
  const ours = lines.filter(
    (line) => !/^ +at .*(node_modules|Promise)/.test(line),
  );
  for (const line of ours.slice(0, 20)) console.log(`  ${line}`);
}

for (const path of process.argv.slice(2)) {
  const report = JSON.parse(readFileSync(path, 'utf8'));
  for (const {
    name,
    status,
    message,
    assertionResults,
  } of report.testResults) {
    const failures = assertionResults.filter((of) => of.status === 'failed');
    for (const { fullName, failureMessages } of failures) {
      sayFailed(name, fullName, failureMessages);
    }
    // A file that fails outside its tests has none to count: it is one.
    if (status === 'failed' && failures.length === 0) {
      sayFailed(name, 'the file', [message]);
    }
  }
  passed += report.numPassedTests;
  skipped += report.numPendingTests + report.numTodoTests;
}

console.log(`${passed} passed, ${failed} failed, ${skipped} skipped`);
process.exitCode = failed > 0 || passed === 0 ? 1 : 0;
